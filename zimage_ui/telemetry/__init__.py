"""What the machine is doing: probes, one sampler thread, bounded history. It only watches."""
