"""Builds the compiled twins. Without a C compiler the references run in their place (and say so)."""

from Cython.Build import cythonize
from setuptools import Extension, setup

setup(
    ext_modules=cythonize(
        [
            Extension("protocol._records", ["protocol/_records.pyx"], optional=True),
            Extension("gateway.core._forwarding", ["gateway/core/_forwarding.pyx"], optional=True),
        ],
        build_dir="build",
    )
)
