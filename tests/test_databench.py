"Images a second: what is measured, the stand-ins, and the committed files"
import os
import pytest
from conftest import ROOT
from medattn_nb.bench import read_bench, show_bench
from medattn_nb.core import ArgumentError
from medattn_nb.data.datasets import _discover, _registry, load
from medattn_nb.lab import databench
from medattn_nb.lab.bench import run_bench
from medattn_nb.lab.databench import _cold, _drawing, _reading, _standins, bench_loaders, bench_phantoms, standin

_discover()
SYNTHETIC = sorted(k for k,(i,_) in _registry.items() if i.synthetic)
REAL_SETS = sorted(set(_registry)-set(SYNTHETIC))
SIZES = {'skin-cancer':(224,224,3), 'covid19-radiography':(1024,1024), 'messidor':(960,1440,3), 'isic-2018-task2':(1500,2000,3), 'upjo':(600,800,3), 'isles-2018':(224,224,4), 'brats-2018':(160,160,4), 'cityscapes':(128,256,3)}

def test_every_stand_in_has_its_size(): assert set(SIZES)==set(_standins)<=set(REAL_SETS)

@pytest.mark.parametrize('name', sorted(set(SIZES)-{'brats-2018'}))
def test_stand_ins_are_read_by_their_loaders(tmp_path, name):
    d = load(name, standin(name, tmp_path, 3))
    assert len(d)>=3 and d.image(0).shape==SIZES[name]
    assert d.masks(0) is None or d.masks(0).shape[1:]==SIZES[name][:2]

def test_no_stand_in(tmp_path):
    with pytest.raises(ArgumentError, match='choose one of brats-2018'): standin('covid-ct', tmp_path)

def test_each_picture_is_drawn_once():
    seen = []
    class Counted:
        options,keys = None,('number',)
        def _at(self, row): return (row,)
        def draw(self, o, number): return seen.append(number)
    data = type('D', (), dict(reader=Counted(), _rows=list(range(50))))
    f = _drawing(data)
    f(1); f(3); f(40)
    assert sorted(seen)==list(range(44))

@pytest.mark.parametrize('name', SYNTHETIC)
def test_phantoms_can_be_timed(name): assert len(_drawing(load(name, size=64, n=48))(2))==2

def test_cases_of_a_real_layout(tmp_path, monkeypatch):
    monkeypatch.delenv('MEDATTN_DATA', raising=False)
    d = load('skin-cancer', standin('skin-cancer', tmp_path, 4))
    x,m = _reading(d, 32)(3)[2]
    assert x.shape==(32,32,3) and m is None
    n,f = _cold(load('isles-2018', standin('isles-2018', tmp_path)), 32)
    assert n==8 and len(f(n))==n and f(n)[0][0].shape==(32,32,4)

def test_a_part_can_be_measured(tmp_path):
    p, = run_bench(['phantoms'], 'cpu', 3, tmp_path, only='texture')
    df = read_bench('phantoms', folder=tmp_path)
    assert set(df.case)=={'phantom-texture'} and df.images.tolist()==[1,64] and df.peak.isna().all()
    assert 'one at a time' in repr(show_bench('phantoms', folder=tmp_path)) and not list(tmp_path.glob('*.png'))

# --- what is committed ---------------------------------------------------------------------------------
def test_every_set_was_measured():
    assert sorted(set(read_bench('phantoms', folder=ROOT/'results/bench').case))==SYNTHETIC
    assert sorted(set(read_bench('loaders', folder=ROOT/'results/bench').case))==REAL_SETS

def test_phantoms_are_fast_enough():
    "At least 200 pictures of 128x128 a second, as measured and committed"
    df = read_bench('phantoms', folder=ROOT/'results/bench')
    assert ((df.images/df.seconds).groupby(df.case).max()>=200).all() and df.setting.str.startswith('128x128').all()

def test_compact_copies_were_measured_on_real_files():
    df = read_bench('loaders', folder=ROOT/'results/bench').set_index('case')
    assert all(df.loc[o].setting.str.startswith('made up' if o in _standins else 'real').all() for o in REAL_SETS)
