"""The REST service that reads facial expressions from photos and shows where it looked."""
