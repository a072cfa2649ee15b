"""The parts of ``benchmarks.gpu``, one a file; each has ``measure(here)``, which tells figures as they are measured."""
