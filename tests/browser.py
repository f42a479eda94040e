"JupyterLab and a headless Chromium for tests that click: `lab(folder)` serves a folder, `chromium(folder)` opens a browser; both are ended at the end"
import contextlib, json, os, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path
import pytest

WAIT = float(os.environ.get('MEDATTN_BROWSER_WAIT', 180))  # seconds; a busy machine needs many, an idle one few

def needs():
    "Skip with the reason where something is missing; returns the paths of browser and driver"
    pytest.importorskip('selenium', reason='selenium is not installed'); pytest.importorskip('jupyterlab', reason='jupyterlab is not installed'); pytest.importorskip('ipywidgets', reason='ipywidgets is not installed')
    found = [next(filter(None, map(shutil.which, names)), None) for names in (('chromium','chromium-browser','google-chrome','chrome'), ('chromedriver',))]
    for o,what in zip(found, ('chromium','chromedriver')):
        if o is None: pytest.skip(f'{what} is not installed')
    return found

def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]

def ended(p, patience=10):
    "End the process `p` that we started, and wait for it"
    p.terminate()
    try: p.wait(patience)
    except subprocess.TimeoutExpired: p.kill(); p.wait()

class Server:
    "Where a JupyterLab answers, and its log"
    def __init__(self, port, token, log): self.port,self.token,self.log = port,token,log
    def url(self, path): return f'http://127.0.0.1:{self.port}/{path}?token={self.token}'
    def api(self, path, method='GET'):
        "JSON from the server's own interface"
        with urllib.request.urlopen(urllib.request.Request(self.url(f'api/{path}'), method=method), timeout=10) as r:
            return json.loads(r.read() or b'null')

@contextlib.contextmanager
def lab(folder, home, kernel_path=None):
    "A JupyterLab on `folder` with settings, runtime files and log under `home`"
    home = Path(home); quiet = home/'settings'/'@jupyterlab'/'apputils-extension'; quiet.mkdir(parents=True, exist_ok=True); port,token = free_port(),os.urandom(12).hex()
    (quiet/'notification.jupyterlab-settings').write_text('{"fetchNews": "false", "checkForUpdates": false}')
    env = dict(os.environ, JUPYTER_CONFIG_DIR=str(home/'config'), JUPYTER_RUNTIME_DIR=str(home/'runtime'), JUPYTERLAB_SETTINGS_DIR=str(home/'settings'), JUPYTERLAB_WORKSPACES_DIR=str(home/'workspaces'),
               IPYTHONDIR=str(home/'ipython'), OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join(filter(None, [kernel_path and str(kernel_path), os.environ.get('PYTHONPATH')])))
    args = ['--no-browser', '--allow-root', f'--ServerApp.port={port}', '--ServerApp.port_retries=0', '--ServerApp.ip=127.0.0.1', f'--IdentityProvider.token={token}', f'--ServerApp.root_dir={folder}',
            '--LabApp.expose_app_in_browser=True', '--ServerApp.terminals_enabled=False']
    log = home/'lab.log'
    with log.open('wb') as f: p = subprocess.Popen([sys.executable,'-m','jupyterlab',*args], env=env, stdout=f, stderr=subprocess.STDOUT, cwd=folder)
    server = Server(port, token, log)
    try:
        until = time.monotonic()+WAIT
        while True:
            try: server.api('status'); break
            except OSError:
                if p.poll() is not None or time.monotonic()>until: pytest.fail(f'JupyterLab did not start:\n{log.read_text()[-2000:]}')
                time.sleep(.3)
        yield server
    finally:
        with contextlib.suppress(OSError):
            for k in server.api('kernels'): server.api(f"kernels/{k['id']}", 'DELETE')
        ended(p)

@contextlib.contextmanager
def chromium(folder, size=(1400,1300)):
    "A headless Chromium with its profile in `folder`; it downloads nothing"
    browser,driver = needs()
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    o = webdriver.ChromeOptions(); o.binary_location = browser
    for a in ('--headless=new','--no-sandbox','--disable-dev-shm-usage','--disable-gpu','--disable-extensions','--no-first-run','--disable-background-networking','--disable-component-update',
              f'--user-data-dir={folder}', f'--window-size={size[0]},{size[1]}'): o.add_argument(a)
    d = webdriver.Chrome(options=o, service=Service(driver))
    try: yield d
    finally: d.quit()

_FIND = 'const app = window.jupyterapp, w = app && [...app.shell.widgets("main")].find(o => o.sessionContext); '

def open_notebook(d, server, name):
    "Open the notebook `name` and wait until its kernel is idle"
    from selenium.webdriver.support.ui import WebDriverWait
    d.set_script_timeout(WAIT); d.get(server.url(f'lab/tree/{name}') + '&reset')
    ready = _FIND + 'const k = w && document.querySelector(".jp-Notebook .jp-CodeCell") && w.sessionContext.session && w.sessionContext.session.kernel; return !!k && k.connectionStatus=="connected" && k.status=="idle"'
    WebDriverWait(d, WAIT).until(lambda d: d.execute_script(ready), f'the notebook did not open, or has no kernel; the log says:\n{server.log.read_text()[-2000:]}')

def run_all(d):
    "Run every cell of the open notebook"
    said = d.execute_async_script(_FIND + 'const done = arguments[0]; app.shell.activateById(w.id); app.commands.execute("notebook:run-all-cells").then(() => done(""), e => done(String(e)))')
    assert not said, said

def sees(driver, text):
    "Wait until the status line of a widget on the page says `text`"
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException, TimeoutException
    from selenium.webdriver.support.ui import WebDriverWait
    gone = StaleElementReferenceException,NoSuchElementException # JupyterLab draws an output anew
    def said():
        try: return next((o.text for o in driver.find_elements('css selector', '.jp-OutputArea-output [role=status]')), '')
        except gone: return ''
    try: WebDriverWait(driver, WAIT, poll_frequency=.2).until(lambda _: text in said())
    except TimeoutException: raise AssertionError(f'the page does not say {text!r} but {said()!r}') from None
