"Hand the metadata in settings.ini to setuptools."
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=["="], interpolation=None)
ini.read(here/"settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]

def lines(key): return [o for o in cfg[key].splitlines() if o]

setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"],
    author=cfg["author"], license_expression=cfg["license"], keywords=cfg["keywords"].split(),
    long_description=(here/"README.md").read_text(encoding="utf-8"), long_description_content_type="text/markdown",
    classifiers=["Development Status :: 3 - Alpha", "Intended Audience :: Science/Research", "Intended Audience :: Education",
        "Topic :: Scientific/Engineering :: Artificial Intelligence", "Topic :: Scientific/Engineering :: Medical Science Apps."] +
        [f"Programming Language :: Python :: {o}" for o in cfg["python_versions"].split()],
    python_requires=f">={cfg['min_python']}",
    install_requires=lines("requirements"),
    extras_require={k: lines(f"{k.replace('-', '_')}_requirements") for k in ("notebooks", "formats", "fast-slic", "dev")},
    entry_points={"console_scripts": lines("console_scripts"), "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]},
)
