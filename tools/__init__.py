"""Programs that use several packages of im2sp."""
