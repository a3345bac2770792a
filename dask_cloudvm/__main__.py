"""``python -m dask_cloudvm``."""

from dask_cloudvm.cli import main

main()
