"""The pipeline that runs on a device: it takes a bundle in, proves it there, and switches to it or does not.

It needs Python 3.10, numpy and the library of the device's runtime, and travels as one file.
"""
