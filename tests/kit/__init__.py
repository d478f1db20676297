"""What several tests share: secrets, cut streams, real servers and raw clients."""
