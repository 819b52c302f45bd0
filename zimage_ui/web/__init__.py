"""HTTP: health, metrics, the telemetry stream, pictures, the images API, and the guard before them all."""
