"The ledger: what is written is what is read, a changed file is found, two writers leave one whole record"
import json, os, shutil, subprocess, sys
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from medattn_nb.core import ArgumentError, ResultError
from medattn_nb.lab.ledger import Ledger, PARTS, frame, make_record

def parts(**kw):
    "The parts of a plausible record"
    d = dict(paper='toy', table='t', row='ResNet-18 + SE', preset='smoke', recipe=dict(data='x', seed=0), recipe_hash='0123456789ab', seed=0,
        data=dict(name='x', synthetic=True, fingerprint='f', split_fingerprint='s'), metrics=dict(test=dict(auc=.75)), history=[dict(epoch=0, train_loss=.7)],
        scores=dict(test=dict(file=['a','b'], label=[0,1], group=['a','b'], score=[.2,.8])), parameters=10, seconds=1.5, memory_mb=None, resumed=0,
        environment=dict(device='cpu', device_name='a cpu', versions=dict(medattn_nb='0'), git=dict(commit=None, dirty=None)))
    return {**d, **kw}

json_values = st.recursive(st.none()|st.booleans()|st.integers(-2**53, 2**53)|st.floats(allow_nan=False, allow_infinity=False)|st.text(max_size=20),
    lambda o: st.lists(o, max_size=4)|st.dictionaries(st.text(max_size=8), o, max_size=4), max_leaves=12)

@settings(max_examples=50, deadline=None)
@given(recipe=json_values, metrics=st.dictionaries(st.text(max_size=8), json_values, max_size=3))
def test_round_trip(tmp_path_factory, recipe, metrics):
    rec,led = make_record(**parts(recipe=recipe, metrics=metrics)),Ledger(tmp_path_factory.mktemp('led'))
    led.write(rec)
    assert led.records()==[rec]

def test_numpy_and_nan_become_json(tmp_path):
    rec = make_record(**parts(metrics=dict(test=dict(auc=np.float32('nan'), n=np.int64(3), x=np.arange(2), y=float('inf')))))
    assert rec['metrics']['test']==dict(auc=None, n=3, x=[0,1], y=None)
    Ledger(tmp_path).write(rec)
    assert Ledger(tmp_path).records()==[rec]

@pytest.mark.parametrize('change', [lambda r: r['metrics']['test'].update(auc=.99), lambda r: r.update(seed=1), lambda r: r.pop('history'),
    lambda r: r.update(extra=1), lambda r: r.pop('digest'), lambda r: r['scores']['test']['score'].reverse()])
def test_a_changed_record_is_found(tmp_path, change):
    p = Ledger(tmp_path).write(make_record(**parts()))
    r = json.loads(p.read_text())
    change(r)
    p.write_text(json.dumps(r))
    with pytest.raises(ResultError, match='changed after it was written') as e: Ledger(tmp_path).records()
    assert p.name in str(e.value)

@pytest.mark.parametrize('damage', [lambda b: b[:len(b)//2], lambda b: b'', lambda b: b'\xff\xfe'+b, lambda b: b'[1,2]', lambda b: b'null'])
def test_a_damaged_record_is_named(tmp_path, damage):
    p = Ledger(tmp_path).write(make_record(**parts()))
    p.write_bytes(damage(p.read_bytes()))
    with pytest.raises(ResultError) as e: Ledger(tmp_path).records()
    assert p.name in str(e.value)

def test_formatting_is_no_change(tmp_path):
    "The digest is of the content: a formatter may indent the file"
    rec = make_record(**parts())
    p = Ledger(tmp_path).write(rec)
    p.write_text(json.dumps(rec, indent=2))
    assert Ledger(tmp_path).records()==[rec]

def test_never_rewritten(tmp_path):
    led,rec = Ledger(tmp_path),make_record(**parts())
    p = led.write(rec)
    before = p.read_bytes()
    with pytest.raises(ResultError, match='already in the ledger'): led.write(make_record(**parts(metrics=dict(test=dict(auc=.1)))))
    assert p.read_bytes()==before and [o.name for o in p.parent.iterdir()]==[p.name]

def test_runs_that_differ_have_files_of_their_own(tmp_path):
    led = Ledger(tmp_path)
    for kw in (dict(), dict(seed=1), dict(recipe_hash='ba9876543210'), dict(row='ResNet-18'), dict(table='u'), dict(paper='other')): led.write(make_record(**parts(**kw)))
    assert len(led.files())==6 and len(led.files('toy'))==5 and len(led.files('toy','t'))==4
    assert len(frame(led.records()))==6

def test_parts_are_checked():
    with pytest.raises(ArgumentError, match='missing'): make_record(**{k:v for k,v in parts().items() if k!='scores'})
    with pytest.raises(ArgumentError, match='parts of a record'): make_record(**parts(colour='red'))
    assert set(parts())==set(PARTS)

def test_nothing_there(tmp_path):
    led = Ledger(tmp_path/'none')
    assert led.records()==[] and len(frame([]))==0 and not (tmp_path/'none').exists()

WRITER = """
import json, sys, time
from medattn_nb.core import ResultError
from medattn_nb.lab.ledger import Ledger
folder,record,go = sys.argv[1:]
rec = json.load(open(record))
print('ready', flush=True)
at = float(input())
while time.time()<at: pass
try: Ledger(folder).write(rec); print('wrote')
except ResultError: print('refused')
"""

def test_two_processes_leave_one_whole_record(tmp_path):
    import time
    rec = make_record(**parts(history=[dict(epoch=i, train_loss=i/7) for i in range(20000)]))
    (tmp_path/'rec.json').write_text(json.dumps(rec))
    ps = [subprocess.Popen([sys.executable,'-c',WRITER,tmp_path/'led',tmp_path/'rec.json','x'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for p in ps: assert p.stdout.readline()=='ready\n'
    at = time.time()+.3
    for p in ps: p.stdin.write(f'{at}\n'); p.stdin.flush()
    assert sorted(p.communicate(timeout=120)[0].strip() for p in ps)==['refused','wrote']
    assert Ledger(tmp_path/'led').records()==[rec]
    assert [o.suffix for o in (tmp_path/'led/toy/t').iterdir()]==['.json']

def test_a_change_anywhere_in_the_library_is_dirty(tmp_path, monkeypatch):
    import subprocess
    from medattn_nb.lab import ledger
    lab = tmp_path/'pkg/lab'; lab.mkdir(parents=True)
    for o in (lab/'ledger.py', tmp_path/'pkg/losses.py', tmp_path/'notes.txt'): o.write_text('1')
    if not shutil.which('git'): pytest.skip('git is not here')
    none = {**os.environ, 'GIT_CONFIG_GLOBAL':os.devnull, 'GIT_CONFIG_NOSYSTEM':'1'} # no signing, no hooks of the user
    def git(*a): subprocess.run(['git','-c','user.name=a','-c','user.email=a@b.c',*a], cwd=tmp_path, env=none, check=True, capture_output=True)
    git('init', '-q'); git('add', '.'); git('commit', '-qm', 'all')
    monkeypatch.setattr(ledger, '_here', lambda: lab/'ledger.py')
    assert ledger._commit()['dirty'] is False and len(ledger._commit()['commit'])==40
    (tmp_path/'notes.txt').write_text('2')
    assert ledger._commit()['dirty'] is False
    (tmp_path/'pkg/losses.py').write_text('2')
    assert ledger._commit()['dirty'] is True

def test_a_copy_that_is_not_under_git_has_no_commit(tmp_path, monkeypatch):
    from medattn_nb.lab import ledger
    none = dict(commit=None, dirty=None)
    (tmp_path/'pkg/lab').mkdir(parents=True); (tmp_path/'pkg/lab/ledger.py').write_text('1')
    monkeypatch.setattr(ledger, '_here', lambda: tmp_path/'pkg/lab/ledger.py')
    assert ledger._commit()==none
    monkeypatch.setenv('PATH', '')
    assert ledger._commit()==none and ledger.environment()['git']==none
