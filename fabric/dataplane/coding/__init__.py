"""Codecs of tensors at the ends of a channel: chosen per message, encoded at the sender, restored at the receiver."""
