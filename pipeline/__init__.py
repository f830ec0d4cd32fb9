"""Raw media to units and back: decoding, tokenizers, published weights, the tokenize job."""
