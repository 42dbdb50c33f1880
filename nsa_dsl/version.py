"""The version, written once: packaging, the command line and the kernel cache's keys read it here."""

VERSION = "0.1.0"
