"""The only room that knows FiftyOne's label classes."""
