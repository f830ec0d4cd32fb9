"""Shared helpers that build test inputs."""
