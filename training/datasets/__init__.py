"""Data sets, each in its official layout, as splits of labelled images."""
