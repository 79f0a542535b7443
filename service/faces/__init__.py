"""Face pipeline shared by serving and training: detection, alignment, head pose."""
