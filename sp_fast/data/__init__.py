"""Images, annotations and data sets. Importing this package needs neither mmdet nor mmengine."""
