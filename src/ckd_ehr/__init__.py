"""CKD-EHR: clinical knowledge distillation for electronic health records.

The folders read in flow order: contracts, data, knowledge, learning, metrics; a module imports
only from its own folder and the folders before it.
"""

from importlib.metadata import version

__version__ = version("ckd-ehr")
