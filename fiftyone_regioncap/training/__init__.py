"""Training of captioners on what people said of regions.

:mod:`.data` reads reviewed captions out of a dataset as plain examples; :mod:`.loop`
trains any captioner on them that has a recipe
(:class:`~fiftyone_regioncap.captioning.trainable.Trainable`), and knows nothing of
FiftyOne; :mod:`.run` puts both together.
"""
