"""Networks and front ends of the encoders, as their publishers built them."""
