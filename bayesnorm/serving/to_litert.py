"""A TensorFlow graph as a LiteRT model.

Imported only to export, with the TensorFlow backend.
"""

import re
import tempfile

import keras
import tensorflow as tf

from bayesnorm.serving.saved_model import tables_of


def convert(graph):
    """Returns the bytes of the LiteRT model of a `OneGraph`.

    Raises:
        ValueError: If LiteRT has no operation for something in it.
    """
    archive = keras.export.ExportArchive()
    for table in tables_of(graph.model):
        archive.track(table)
    archive.add_endpoint("serving_default", graph, [graph.specs])
    with tempfile.TemporaryDirectory() as folder:
        archive.write_out(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        try:
            return converter.convert()
        except Exception as error:
            found = re.findall(r"(?:Select|Custom) ops: (.*)", str(error))
            unknown = {name for names in found for name in names.split(", ")}
            if unknown:
                graph.check(graph.traced(), unknown, "LiteRT")
            raise
