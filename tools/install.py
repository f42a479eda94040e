#!/usr/bin/env python3
"""Make .venv and install the project in it from constraints.txt; do nothing where that is already done.

Plain Python 3.10 or newer runs this, with nothing installed. Every `make` target calls it first. A stamp,
written last, holds a hash of the files that decide what is installed, so an interrupted run is repaired by
the next one and a finished one costs a few milliseconds."""
import hashlib, os, subprocess, sys, time
from configparser import ConfigParser
from pathlib import Path

UV = "0.13.8"
INPUTS = "settings.ini", "pyproject.toml", "setup.py", "constraints.txt", "tools/install.py"
WHERE = ("Scripts", ".exe") if os.name=="nt" else ("bin", "")

def say(*msg): print(*msg, flush=True)

def lines(root, key):
    "The requirements listed under `key` in settings.ini"
    ini = ConfigParser(delimiters=["="], interpolation=None)
    ini.read(root/"settings.ini", encoding="utf-8")
    return [o for o in ini["DEFAULT"][key].splitlines() if o]

class Env:
    "The project's own environment in `root/.venv`"
    def __init__(self, root, python=None, run=subprocess.run):
        self.root,self.run = Path(root),run
        self.base = python or getattr(sys, "_base_executable", sys.executable)
        self.dir = self.root/".venv"
        self.stamp,self.home,self.begun = (self.dir/o for o in (".medattn-installed", ".medattn-home", ".medattn-begun"))

    def exe(self, name): return self.dir/WHERE[0]/f"{name}{WHERE[1]}"
    def ok(self, *cmd): return self.run([str(o) for o in cmd], cwd=self.root, capture_output=True).returncode==0

    def key(self):
        "Changes when what should be installed changes, or when the project's folder was moved"
        h = hashlib.sha256(str(self.root).encode())
        for o in INPUTS: h.update((self.root/o).read_bytes())
        return h.hexdigest()

    def done(self): return self.exe("python").exists() and self.stamp.is_file() and self.stamp.read_text()==self.key()

    def usable(self):
        "Does .venv have a Python of its own, with pip, made for this folder?"
        if not self.exe("python").exists(): return False
        moved = self.home.is_file() and self.home.read_text()!=str(self.root)
        return not moved and self.ok(self.exe("python"), "-c", "import pip")

    def create(self):
        say(f"Making .venv with Python {sys.version.split()[0]}" if not self.dir.exists() else "Making .venv anew: the one here is incomplete or was moved")
        if self.run([self.base, "-m", "venv", "--clear", str(self.dir)], cwd=self.root).returncode:
            raise SystemExit("Python could not make .venv: its venv module is incomplete (on Debian and Ubuntu: apt install python3-venv).")
        self.home.write_text(str(self.root))

    def uv(self):
        "The pinned uv inside .venv, or `None` where pip cannot get it"
        uv = self.exe("uv")
        have = self.run([str(uv), "--version"], cwd=self.root, capture_output=True, text=True).stdout if uv.exists() else ""
        if UV in have.split(): return uv
        say(f"Putting uv {UV} into .venv")
        cmd = [str(self.exe("python")), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"uv=={UV}"]
        return uv if self.run(cmd, cwd=self.root).returncode==0 else None

    def install(self, *what, again=False, **kw):
        "Install `what` with uv; where uv is missing or fails, with pip, which follows this machine's own pip settings"
        env = {k:v for k,v in os.environ.items() if k not in ("UV_SYSTEM_PYTHON", "PYTHONHOME")}
        env.setdefault("UV_HTTP_TIMEOUT", "300")
        py,args = str(self.exe("python")),["-c", "constraints.txt", *what]
        # Where Python may not write bytecode as it goes, each start would compile PyTorch anew, for twenty seconds
        compiled = ["--compile-bytecode"] if sys.dont_write_bytecode else []
        uv = self.uv()
        if uv and self.run([str(uv), "pip", "install", "--python", py, *compiled, *["--reinstall"]*again, *args], cwd=self.root, env=env, **kw).returncode==0: return True
        if kw: return False
        say("uv did not finish; trying the same with pip")
        return self.run([py, "-m", "pip", "install", *["--force-reinstall"]*again, *args], cwd=self.root, env=env).returncode==0

    def fast_slic(self):
        "An optional extra that needs a C++ compiler: tried once, never fatal"
        what = lines(self.root, "fast_slic_requirements")
        say("Building fast-slic (optional; half a minute)")
        if self.install(*what, capture_output=True): return True
        say("fast-slic was not built, most likely for want of a C++ compiler; everything else works without it. `make fast-slic` tries again.")

    def ensure(self):
        "Install whatever is missing; `True` where something was done"
        if self.done(): return False
        t = time.time()
        if not self.usable(): self.create()
        again = self.begun.exists()
        self.begun.touch()
        self.stamp.unlink(missing_ok=True)
        say("Installing the project into .venv (a few GB the first time: PyTorch)")
        if not self.install("-e", ".[notebooks,formats,dev]", again=again):
            raise SystemExit("The installation did not finish. Is the network there? The same command goes on from here.")
        self.fast_slic()
        self.stamp.write_text(self.key())
        self.begun.unlink()
        say(f"Installed in {time.time()-t:.0f} s")
        return True

def main(argv):
    if sys.version_info<(3,10): raise SystemExit(f"Python 3.10 or newer is needed; this is {sys.version.split()[0]}. Name another one with `make PYTHON=python3.11 ...`.")
    env = Env(Path(__file__).resolve().parent.parent)
    if "fast-slic" in argv: return 0 if env.fast_slic() else 1
    env.ensure()

if __name__=="__main__":
    try: sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt: sys.exit("\nInterrupted. The same command goes on from here.")
