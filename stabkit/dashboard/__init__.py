"""TensorBoard: the writer that turns records into a handful of clear dashboards."""
