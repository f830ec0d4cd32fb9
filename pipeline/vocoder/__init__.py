"""The vocoder: unit HiFi-GAN, its weights, and the `compact` one."""
