"The reader's page in JupyterLab in a real browser: a reader answers, the kernel is killed in the middle, he goes on, finishes, and only then sees model names"
import os, signal, sqlite3, sys
from pathlib import Path
import numpy as np
import pytest
from browser import WAIT, chromium, lab, needs, open_notebook, run_all
from conftest import ROOT

MODELS = 'Plainmodel zero','Attmodel one','Attmodel two'

def study_file(p):
    "Four small images with three maps each"
    from medattn_nb.lab.reader import create_study
    y,x = np.mgrid[:64,:64]; ims = [np.random.default_rng(i).random((64,64)) for i in range(4)]
    maps = {m: np.stack([np.exp(-((y-20-9*j)**2+(x-15-10*i)**2)/150) for i in range(4)]) for j,m in enumerate(MODELS)}
    return create_study(p, ims, maps, seed=5, title='Which map?', names=[f'secretname{i}' for i in range(4)])

def notebook(p, db, pid):
    import nbformat as nf
    code = f'import os; open({str(pid)!r},"w").write(str(os.getpid()))\nfrom medattn_nb.lab.reader import ReaderStudy\nReaderStudy({str(db)!r}).page()'
    nf.write(nf.v4.new_notebook(cells=[nf.v4.new_code_cell(code)], metadata=dict(kernelspec=dict(name='python3', display_name='Python 3', language='python'))), p)

def saved(db):
    "Case and choice of every answer in the file, read by nothing but sqlite3"
    con = sqlite3.connect(db)
    try: return con.execute('SELECT position, choice, why FROM answers ORDER BY id').fetchall()
    finally: con.close()

class Reader:
    "What a person does with the page"
    def __init__(self, d): self.d = d
    def wait(self, f, why):
        from selenium.common.exceptions import StaleElementReferenceException, NoSuchElementException
        from selenium.webdriver.support.ui import WebDriverWait
        return WebDriverWait(self.d, WAIT, poll_frequency=.2, ignored_exceptions=(StaleElementReferenceException,NoSuchElementException)).until(lambda _: f(), why)
    def all(self, css): return self.d.find_elements('css selector', css)
    def text(self): return ' '.join(o.text for o in self.all('.jp-OutputArea-output'))
    def sees(self, s):
        from selenium.common.exceptions import TimeoutException
        try: self.wait(lambda: s in self.text(), '')
        except TimeoutException: raise AssertionError(f'the page does not say {s!r} but {self.text()[-600:]!r}') from None
    def button(self, name): return next((o for o in self.all('.jp-OutputArea-output button') if o.text.strip()==name and o.is_displayed()), None)
    def click(self, name):
        b = self.wait(lambda: (b:=self.button(name)) and b.is_enabled() and b, f'no button {name!r} to click')
        self.d.execute_script('arguments[0].scrollIntoView({block:"center"})', b); b.click()
    def radio(self, name):
        "The round button with the visible label `name`"
        return self.wait(lambda: next((o for o in self.all('.widget-radio-box label') if o.text.strip()==name), None), f'no answer {name!r}').find_element('css selector', 'input')
    def choose(self, name):
        r = self.radio(name); self.d.execute_script('arguments[0].scrollIntoView({block:"center"})', r); r.click()
    def write(self, s): t = self.all('textarea[rows]')[-1]; t.clear(); t.send_keys(s)

@pytest.fixture
def nb(tmp_path):
    needs(); folder = tmp_path/'work'; folder.mkdir()
    study_file(tmp_path/'study.db'); notebook(folder/'survey.ipynb', tmp_path/'study.db', tmp_path/'pid')
    return tmp_path

def blind(r):
    "Nothing that names a model or an image is in the document"
    html = r.d.execute_script('return document.documentElement.outerHTML')
    return [o for o in (*MODELS,'secretname') if o in html]

def shot(r, name):
    "A picture of the page, for the eye, where MEDATTN_SHOTS names a folder"
    if p := os.environ.get('MEDATTN_SHOTS'): r.d.save_screenshot(str(Path(p)/f'{name}.png'))

def test_a_reader_at_work(nb):
    db = nb/'study.db'
    with lab(nb/'work', nb/'home', ROOT) as server, chromium(nb/'profile') as d:
        r = Reader(d); open_notebook(d, server, 'survey.ipynb'); run_all(d)
        r.sees('Reader id'); r.wait(lambda: r.all('input[type=text]'), 'no box for the id')[-1].send_keys('R1')
        r.click('Start'); r.sees('Case 1 of 4'); r.sees('reader R1')
        assert len(r.all('.jp-OutputArea-output figure img'))==4 and all(o.get_attribute('alt').startswith('Case 1: ') for o in r.all('.jp-OutputArea-output figure img'))
        r.wait(lambda: all(o.get_property('naturalWidth')>=300 and o.size['width']>=200 for o in r.all('figure img')), 'pictures missing or too small')
        assert not r.button('Next').is_enabled() and not r.button('Back').is_enabled() and not blind(r)
        shot(r, 'case')
        d.set_window_size(820, 1300); r.wait(lambda: len({o.location['y'] for o in r.all('figure img')})>1, 'the pictures do not wrap in a narrow window'); shot(r, 'narrow')
        assert all(o.size['width']>=150 for o in r.all('figure img')); d.set_window_size(1400, 1300)

        r.choose('Map B'); r.wait(lambda: saved(db)==[(0,'B','')], 'the click did not reach the file')
        r.sees('Saved. 1 of 4 answered')
        r.write('around the bright spot'); r.click('Next'); r.sees('Case 2 of 4')
        assert saved(db)==[(0,'B',''), (0,'B','around the bright spot')]
        assert not any(o.is_selected() for o in r.all('.widget-radio-box input')), 'the answer of the case before is still on the page'
        r.choose('none of them'); r.wait(lambda: saved(db)[-1]==(1,'none',''), 'the second answer did not reach the file')
        d.execute_script('arguments[0].click(); arguments[1].click()', r.button('Next'), r.radio('cannot tell'))  # quicker than the kernel: the second click is made on case 2 as well
        r.wait(lambda: saved(db)[-1]==(1,'unsure',''), 'a late click did not count for the case that was on the screen'); r.sees('Case 3 of 4'); r.sees('Saved, for case 2')
        assert len(saved(db))==4 and not any(o.is_selected() for o in r.all('.widget-radio-box input')); shot(r, 'late')
        r.choose('Map A'); r.wait(lambda: saved(db)[-1][:2]==(2,'A'), 'the third answer did not reach the file')

        before = saved(db); os.kill(int((nb/'pid').read_text()), signal.SIGKILL if sys.platform!='win32' else signal.SIGTERM)
        d.get('about:blank'); (nb/'pid').unlink(); assert saved(db)==before
        open_notebook(d, server, 'survey.ipynb'); run_all(d); r.wait(lambda: (nb/'pid').exists(), 'the cell did not run again')
        r.sees('Reader id'); r.wait(lambda: r.all('input[type=text]'), 'no box for the id')[-1].send_keys('R1'); r.click('Start')
        r.sees('Welcome back: 3 of 4'); r.sees('Case 4 of 4'); assert not blind(r)

        r.choose('Map C'); r.wait(lambda: saved(db)[-1]==(3,'C',''), 'the last answer did not reach the file')
        for k in 3,2,1: r.click('Back'); r.sees(f'Case {k} of 4')
        assert r.radio('Map B').is_selected() and r.all('textarea[rows]')[-1].get_property('value')=='around the bright spot'
        r.choose('cannot tell'); r.wait(lambda: saved(db)[-1]==(0,'unsure','around the bright spot'), 'the change did not reach the file')
        for k in 2,3,4: r.click('Next'); r.sees(f'Case {k} of 4')
        r.click('Next'); r.sees('All cases are answered'); assert not blind(r)
        shot(r, 'end')
        r.click('Finish and see the result'); r.sees('best model')
        shown = r.text(); assert any(m in shown for m in MODELS) and 'around the bright spot' in shown and 'secretname' in shown
        shot(r, 'result')
