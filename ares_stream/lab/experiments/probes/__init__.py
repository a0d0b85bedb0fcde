"""Search methods compared on victims whose weaknesses are known."""
