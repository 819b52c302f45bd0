"""For all tests: the libraries are set up as the program sets them up, before any of them is imported."""

from zimage_ui.settings import tame_third_parties

tame_third_parties()
