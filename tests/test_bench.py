"Counting, measuring, and the files that the pages show; no test looks at a time"
import re
import pandas as pd
import pytest, torch
from torch import nn
from conftest import ROOT, notebooks
from medattn_nb import bench
from medattn_nb.attention import available, create
from medattn_nb.bench import bench_figure, macs, measure, n_params, peak_memory, read_bench, show_bench
from medattn_nb.core import ArgumentError, ResultError
from medattn_nb.lab import bench as lab_bench
from medattn_nb.lab import benchmarks
from medattn_nb.lab.bench import bench_group, bench_groups, passes, run_bench
from medattn_nb.lab.cli import main

@pytest.fixture
def toy(monkeypatch):
    "A group of two quick cases, with a rival whose package nobody has"
    monkeypatch.setattr(lab_bench, '_groups', dict(lab_bench._groups))
    monkeypatch.setattr(lab_bench, '_packages', {'nobody':'no_such_package'})
    def never(): raise AssertionError('a rival without its package was called')
    @bench_group('toy')
    def toy(device):
        x = torch.rand(100, device=device)
        yield dict(case='sum', setting='100', what='forward', variants={'loop':lambda: sum(x.tolist()), 'nobody':never, 'ours':x.sum})
        yield dict(case='product', setting='100', what='forward', variants={'ours':x.prod}, memory=False)

# --- counting ------------------------------------------------------------------------------------------
def test_parameters_and_what_trains():
    m = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    m[0].weight.requires_grad_(False)
    assert (n_params(m), n_params(m, trainable=True))==(3*4*9+4+8, 4+8)

@pytest.mark.parametrize('f,args,n', [
    (nn.Conv2d(6, 4, 3, stride=2, groups=2, bias=False), (torch.zeros(2,6,9,9),), 2*4*3*9*4*4), (nn.Linear(5, 7), (torch.zeros(3,5),), 105),
    (torch.bmm, (torch.zeros(2,3,4), torch.zeros(2,4,5)), 120), (nn.BatchNorm2d(3).eval(), (torch.zeros(2,3,8,8),), 0)])
def test_macs(f, args, n): assert macs(f, *args)==n

def test_macs_count_the_backward():
    w = torch.zeros(4, 5, requires_grad=True)
    assert macs(lambda x: (x@w).sum().backward(), torch.zeros(3, 4))==2*60

def test_peak_is_the_peak_and_not_the_sum():
    x = torch.ones(1000, 1000)
    def f():
        for _ in range(5): x+1
    assert 4e6<=peak_memory(f)<4.1e6
    kept = []
    assert 8e6<=peak_memory(lambda: kept.extend([x+1, x+2]))<8.1e6
    assert peak_memory(lambda: kept.clear())==0

def test_peak_sees_what_the_backward_needs():
    x = torch.ones(1000, 1000, requires_grad=True)
    assert peak_memory(lambda: x.exp().exp().sum().backward())>=3*4e6

# --- measuring -----------------------------------------------------------------------------------------
def test_variants_take_turns():
    order = []
    measure({'a':lambda: order.append('a'), 'b':lambda: order.append('b')}, repeats=3, least=0, memory=False)
    assert ''.join(order[-6:])=='ababab'

def test_quick_calls_are_repeated_within_a_measurement():
    n = []
    r, = measure({'a':lambda: n.append(1)}, repeats=3, least=.002, memory=False)
    assert len(n)>30 and r['low']<=r['seconds']<=r['high'] and r['peak'] is None

def test_passes_give_gradients_of_inputs_and_parameters():
    m,x = nn.Linear(3, 2),torch.randn(4, 3)
    a,b = passes('c', 's', {'gone':None, 'ours':m}, (x,))
    assert list(a['variants'])==['ours'] and (a['what'],b['what'])==('forward','forward+backward')
    assert not a['variants']['ours']().requires_grad
    assert [tuple(g.shape) for g in b['variants']['ours']()]==[(4,3),(2,3),(2,)]
    assert x.grad is None and m.weight.grad is None

# --- files ---------------------------------------------------------------------------------------------
def test_run_writes_what_pages_read(toy, tmp_path):
    said = []
    p,fig = run_bench(['toy'], 'cpu', repeats=3, folder=tmp_path, say=lambda g,r: said.append((g, r['case'], r['variant'])))
    df = read_bench('toy', folder=tmp_path)
    assert p.name=='toy-cpu.csv' and fig.name=='toy-cpu.png' and fig.read_bytes()[:4]==b'\x89PNG' and said==[('toy','sum','loop'),('toy','sum','ours'),('toy','product','ours')]
    assert df.variant.tolist()==['loop','ours','ours'] and df.peak.isna().tolist()==[False,False,True]
    assert (df.repeats==3).all() and df.machine.notna().all() and df.torch.eq(torch.__version__).all() and df.versions.str.contains('numpy').all()
    t = show_bench('toy', folder=tmp_path)
    assert 'cuda: not run' in t.note and '<table' in t._repr_html_() and 'loop' in repr(t)
    assert repr(show_bench('toy', only=['product'], folder=tmp_path)).count('ours')>=1 and 'loop' not in repr(show_bench('toy', only=['product'], folder=tmp_path))
    assert len(bench_figure('toy', folder=tmp_path).axes[0].get_yticks())==1
    assert not list(tmp_path.glob('*.part'))

def test_a_part_does_not_replace_the_whole(toy, tmp_path):
    with pytest.raises(ArgumentError, match='name another folder'): run_bench(['toy'], 'cpu', only='sum')
    run_bench(['toy'], 'cpu', 3, tmp_path, only='prod')
    assert read_bench('toy', folder=tmp_path).case.tolist()==['product']
    assert run_bench(['toy'], 'cpu', 3, tmp_path/'none', only='nothing')==[] and not (tmp_path/'none').exists()

def test_a_stopped_run_leaves_the_old_file(toy, tmp_path, monkeypatch):
    p,_ = run_bench(['toy'], 'cpu', 3, tmp_path)
    old = p.read_text()
    def stop(g, r): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): run_bench(['toy'], 'cpu', 3, tmp_path, say=stop)
    assert p.read_text()==old and {o.name for o in tmp_path.iterdir()}=={'toy-cpu.csv','toy-cpu.png'}

def test_bad_files_and_names(toy, tmp_path):
    with pytest.raises(ArgumentError, match='choose one of'): run_bench(['tyo'], 'cpu', folder=tmp_path)
    (tmp_path/'bad-cpu.csv').write_text('case,what\na,b\n')
    with pytest.raises(ResultError, match='expected also'): read_bench('bad', folder=tmp_path)
    with pytest.raises(ResultError, match='medattn bench absent'): bench_figure('absent', folder=tmp_path)
    assert read_bench('absent', folder=tmp_path) is None

def test_command(toy, tmp_path, capsys):
    assert main(['bench','toy','--repeats','3','--device','cpu','--out',str(tmp_path)])==0
    assert 'toy: sum, forward, ours' in capsys.readouterr().out and (tmp_path/'toy-cpu.csv').exists()
    assert main(['bench','--list'])==0 and capsys.readouterr().out.split()==bench_groups()
    assert main(['bench','tyo'])==2 and 'choose one of' in capsys.readouterr().err
    assert main(['bench','toy','--repeats','1'])==2 and 'at least 3' in capsys.readouterr().err

# --- what is committed ---------------------------------------------------------------------------------
BENCH = sorted((ROOT/'results/bench').glob('*.csv'))

def test_every_group_was_measured_on_the_cpu(): assert {p.stem for p in BENCH}>={f'{g}-cpu' for g in bench_groups()}

@pytest.mark.parametrize('group', bench_groups())
def test_committed_files_are_whole(group):
    for p in (o for o in BENCH if o.stem.startswith(f'{group}-')): is_whole(pd.read_csv(p))

def is_whole(df):
    assert (df.low<=df.seconds).all() and (df.seconds<=df.high).all() and (df.low>0).all() and (df.repeats>=5).all()
    assert not df.duplicated(['case','setting','what','variant']).any()
    assert all((g.variant=='ours').sum()==1 for _,g in df.groupby(['case','what']))

def test_figures_stand_beside_the_files():
    assert {p.stem for p in BENCH if set(pd.read_csv(p).variant)!={'ours'}}=={p.stem for p in (ROOT/'results/bench').glob('*.png')}

def test_attention_file_is_of_these_modules():
    df = read_bench('attention', folder=ROOT/'results/bench')
    assert set(df.case)=={'conv 3x3','attention-gate','grid-attention-gate',*available()}
    for name in available(): assert set(df[df.case==name].params)=={n_params(create(name, 64))}

def test_pages_show_what_is_committed():
    "No page still says that a committed group was not run"
    stale = [p.name for p in notebooks() if re.search(r'Not run: there is no (%s) file' % '|'.join(bench_groups()), p.read_text(encoding='utf-8'))]
    assert not stale, f'run `make outputs` for {stale}'

def test_quartiles_are_promised_only_where_they_are_printed():
    assert 'quartiles' not in show_bench('attention').note and 'quartiles in brackets' in show_bench('exact').note
