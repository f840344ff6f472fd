"""What the fabric can be seen to do: samples of what the data path counts anyway, events, metrics. No hot path."""
