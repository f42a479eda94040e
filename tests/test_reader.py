"What is no lesson: exact tests against enumeration and scipy, kappas against worked examples, blinding, history, failures to save, two writers at once, bad input, merged files"
import csv, itertools, json, multiprocessing, os, re, signal, sqlite3, threading
from collections import Counter
import numpy as np
import pandas as pd
import pytest
from hypothesis import given,settings,strategies as st
from scipy import stats
from conftest import ROOT
from medattn_nb.core import ArgumentError,DataError,ResultError,ShapeError
from medattn_nb.lab import reader as R
from medattn_nb.lab.explain import CamResult
from medattn_nb.lab.reader import *

MODELS = 'Plain net','Net + SE','Net + CBAM'

def images(n, hw=24): return [np.random.default_rng(i).random((hw,hw)) for i in range(n)]
def cams(n, models=MODELS, hw=24): return {m: np.stack([np.random.default_rng([i,j]).random((hw,hw)) for i in range(n)]) for j,m in enumerate(models)}

@pytest.fixture(autouse=True)
def small(monkeypatch):
    "Pictures of 24 pixels, not 320: these tests read no picture"
    sized = R._sized; monkeypatch.setattr(R, '_sized', lambda a: sized(a, 24, 24))

@pytest.fixture
def make(tmp_path):
    def f(n=4, name='s.db', models=MODELS, **kw): return create_study(tmp_path/name, images(n), cams(n, models), **kw)
    return f

def fill(s, reader, pick=lambda s, r, k: 'A'):
    for k in s.open_cases(s.start(reader)): s.answer(reader, k, pick(s, reader, k))

def letter_of(s, reader, k, model):
    "The letter under which `reader` sees `model` in case `k`; looks into the sealed schedule, as no reader can"
    order, = s._rows('SELECT maps FROM schedule WHERE reader=? AND position=?', reader, k)[0]
    return chr(65+json.loads(order).index(s.info['models'].index(model)))

def always(model): return lambda s, r, k: letter_of(s, r, k, model)

# --- tests against chance ------------------------------------------------------------------------------
@pytest.mark.parametrize('votes', [(1,0),(3,1),(2,2),(0,0,4),(1,2,3),(2,1,1,0),(5,0,0,0),(1,1,1,1,1)])
def test_multinomial_equals_all_ways_of_voting(votes):
    n,k = sum(votes),len(votes)
    every = Counter(tuple(np.bincount(o, minlength=k)) for o in itertools.product(range(k), repeat=n))
    assert multinomial_test(votes)==pytest.approx(sum(c for o,c in every.items() if stats.multinomial.pmf(o, n, [1/k]*k)<=stats.multinomial.pmf(votes, n, [1/k]*k)*(1+1e-9))/k**n, rel=1e-9)

@given(st.integers(0,60), st.integers(0,60))
@settings(max_examples=40, deadline=None)
def test_multinomial_of_two_is_the_binomial_test(a, b):
    if a+b: assert multinomial_test([a,b])==pytest.approx(stats.binomtest(a, a+b).pvalue, rel=1e-6)

@given(st.lists(st.integers(0,12), min_size=2, max_size=5))
@settings(max_examples=40, deadline=None)
def test_multinomial_is_a_probability_and_knows_no_names(votes):
    p = multinomial_test(votes)
    assert 0<p<=1 and p==pytest.approx(multinomial_test(votes[::-1]))

@pytest.mark.parametrize('alternative', ['two-sided','greater','less'])
@pytest.mark.parametrize('k', [2,3,4,6])
def test_single_votes_give_the_binomial_test(k, alternative):
    for n,x in ((1,0),(1,1),(6,6),(11,3),(20,0)):
        v = np.eye(k, dtype=int)[[0]*x+[1]*(n-x)]
        assert vote_test(v, 0, alternative=alternative)==pytest.approx(stats.binomtest(x, n, 1/k, alternative).pvalue, rel=1e-9)
        assert vote_test(v, 0, other=True, alternative=alternative)==pytest.approx(stats.binomtest(n-x, n, (k-1)/k, alternative).pvalue, rel=1e-9)

@given(st.lists(st.lists(st.integers(0,3), min_size=3, max_size=3), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_bunches_equal_all_relabellings(votes):
    v = np.array(votes); sums = Counter(sum(o) for o in itertools.product(*v.tolist()))
    pmf = vote_pmf(v)
    assert len(pmf)==v.sum()+1 and pmf.sum()==pytest.approx(1)
    for x,p in enumerate(pmf): assert p==pytest.approx(sums[x]/3**len(v))
    assert vote_test(v, 1, alternative='greater')==pytest.approx(sum(c for x,c in sums.items() if x>=v[:,1].sum())/3**len(v))

def test_bunches_are_weaker_evidence():
    apart = np.repeat(np.eye(4, dtype=int)[[1]], 12, axis=0); bunched = np.array([[0,4,0,0]]*3)
    assert vote_test(bunched, 1)==pytest.approx(4**-3) and vote_test(apart, 1)==pytest.approx(4**-12)

def test_preference_of_bunches_is_calibrated():
    "Under the null 5 % of p-values lie below .05: votes in bunches that agree fully"
    rng = np.random.default_rng(1)
    ps = [preference_test(3*np.eye(3, dtype=int)[rng.integers(3, size=8)], draws=199, seed=i)[0] for i in range(300)]
    assert .005<=np.mean(np.array(ps)<=.05)<=.09
    naive = [multinomial_test(3*np.bincount(rng.integers(3, size=8), minlength=3)) for _ in range(300)]
    assert np.mean(np.array(naive)<=.05)>.15, 'the bunches were no problem, so this test shows nothing'

def test_preference_takes_the_exact_way_where_it_can():
    v = np.eye(3, dtype=int)[[0,0,1,0]]
    assert preference_test(v)==(multinomial_test([3,1,0]), 'exact') and preference_test(np.vstack([v, 2*v[:1]]))[1]=='9999 relabellings'
    assert preference_test(2*v)==preference_test(2*v)

@given(st.integers(1,60), st.floats(0,1), st.sampled_from([.8,.95,.99]))
@settings(max_examples=60, deadline=None)
def test_intervals_are_scipys(n, f, level):
    x = round(f*n)
    for m in ('exact','wilson'):
        got,ref = share_interval(x, n, level, m),stats.binomtest(x, n).proportion_ci(level, m)
        assert got[1:]==pytest.approx((ref.low,ref.high), abs=1e-9) and got.low<=got.value+1e-12 and got.value<=got.high+1e-12

@pytest.mark.parametrize('f,says', [
    (lambda: multinomial_test([3]), 'two or more models'), (lambda: multinomial_test([1.5,2]), 'whole numbers'), (lambda: multinomial_test([-1,2]), 'whole numbers'), (lambda: multinomial_test([150,60]), 'up to 200'),
    (lambda: vote_test([1,2]), 'a row a group'), (lambda: vote_test([[1,2]], alternative='more'), "'greater'"), (lambda: share_interval(3, 2), '0 <= x <= n'), (lambda: share_interval(0, 0), 'n above 0'),
    (lambda: share_interval(1, 2, 95), 'between 0 and 1'), (lambda: share_interval(1, 2, method='wald'), "'wilson'")])
def test_statistics_say_what_is_wrong(f, says):
    with pytest.raises(ArgumentError, match=says): f()

# --- agreement -----------------------------------------------------------------------------------------
# Fleiss (1971), Table 1: 30 patients, 6 psychiatrists, as in the tests of statsmodels and of R's irr, kappa 0.4302445
PSYCHIATRISTS = ('444444 222555 233335 555555 222444 113333 333355 113334 114444 555555 144444 124444 222333 144444 224445 '
                 '333335 111455 111112 224444 133555 555555 244444 224555 114444 144445 222224 111155 224444 133333 555555').split()

def test_fleiss_kappa_of_his_own_paper():
    c = np.array([[o.count(v) for v in '12345'] for o in PSYCHIATRISTS])
    assert c.sum(0).tolist()==[26,26,30,55,43] and fleiss_kappa(c)==pytest.approx(.4302445, abs=1e-7)

@pytest.mark.parametrize('counts,kappa', [([[7,1],[3,5]], .161905), ([[6,1,0],[0,7,0]], .708333), ([[7,0],[0,7]], 1)])
def test_fleiss_kappa_of_randolphs_calculator(counts, kappa): assert fleiss_kappa(counts)==pytest.approx(kappa, abs=6e-6)

def test_krippendorff_by_pairs():
    "Against the definition: all ordered pairs of values within a unit, and of all values"
    rng = np.random.default_rng(0); units = [rng.integers(0, 3, size=m).tolist() for m in (1,2,2,3,4,2,5)]
    pairable = [u for u in units if len(u)>1]; flat = sum(pairable, []); n = len(flat)
    do = sum(sum(a!=b for a,b in itertools.permutations(u, 2))/(len(u)-1) for u in pairable)/n
    de = sum(a!=b for a,b in itertools.permutations(flat, 2))/(n*(n-1))
    assert krippendorff_alpha([[u.count(v) for v in range(3)] for u in units])==pytest.approx(1-do/de)
    two = [[2,0],[1,1],[0,2],[0,2],[1,1],[0,2],[2,0],[2,0],[1,1],[0,2]]
    assert krippendorff_alpha(two)==pytest.approx(fleiss_kappa(two)+(1-fleiss_kappa(two))/20)

def test_cohen_of_a_textbook():
    pairs = np.array([(1,1)]*20+[(1,0)]*5+[(0,1)]*10+[(0,0)]*15)
    assert R._cohen(pairs)==pytest.approx(.4) and np.isnan(R._cohen(np.ones((4,2), int)))

def test_one_category_is_undefined_but_for_gwet():
    one = [[3,0],[3,0]]
    assert np.isnan(fleiss_kappa(one)) and np.isnan(krippendorff_alpha(one)) and gwet_ac1(one)==1 and np.isnan(gwet_ac1([[1,0]]))
    with pytest.raises(ShapeError, match='krippendorff_alpha'): fleiss_kappa([[3,0],[1,1]])

# --- blinding ------------------------------------------------------------------------------------------
def test_every_model_stands_everywhere_equally_often():
    for k in 2,3,5:
        seen = np.array([o for s in range(40) for r in ('a','b') for _,_,o in draw_schedule(r, 10, k, seed=s)])
        table = [[(seen[:,p]==m).sum() for p in range(k)] for m in range(k)]
        assert stats.chisquare(np.ravel(table)).pvalue>1e-3

def test_orders_tell_nothing_about_each_other():
    "The place of model 0 in one image says nothing about its place in the next, nor for the next reader"
    at = np.array([[o.index(0) for _,_,o in sorted(draw_schedule(f'r{r}', 6, 3))] for r in range(300)])
    for a,b in (at[:,0],at[:,1]),(at[:-1,0],at[1:,0]):
        assert stats.chi2_contingency(np.histogram2d(a, b, bins=3)[0]).pvalue>1e-3

@given(st.integers(1,15), st.integers(2,6), st.data())
@settings(max_examples=60, deadline=None)
def test_schedules_hold_everything_once_and_repeats_twice(n, k, data):
    repeat = data.draw(st.integers(0, n)); plan = draw_schedule('r', n, k, data.draw(st.integers(0,99)), data.draw(st.booleans()), repeat)
    assert sorted(i for i,a,_ in plan if not a)==list(range(n)) and len(plan)==n+repeat and all(sorted(o)==list(range(k)) for *_,o in plan)
    again = [i for i,a,_ in plan if a]; assert len(set(again))==repeat
    where = {(i,a): p for p,(i,a,_) in enumerate(plan)}
    assert all(where[i,1]>where[i,0] for i in again)
    if repeat<=n//2: assert all(where[i,1]-where[i,0]>n//2 for i in again)

def test_readers_see_other_orders_unless_told():
    a,b = ([i for i,*_ in draw_schedule(r, 9, 3)] for r in 'ab'); assert a!=b
    assert [i for i,*_ in draw_schedule('a', 9, 3, shuffle=False)]==list(range(9))
    assert draw_schedule('a', 9, 3)==draw_schedule('a', 9, 3)!=draw_schedule('a', 9, 3, seed=1)

def test_the_schedule_never_changes():
    "Frozen: a study begun today has to be read next year"
    assert draw_schedule('Ann', 4, 3, repeat=1)==[(3,0,[1,0,2]),(2,0,[1,2,0]),(1,0,[2,1,0]),(0,0,[1,0,2]),(3,1,[0,1,2])]

def test_nothing_shown_names_a_model_or_an_image(make):
    s = make(names=[f'secret{i}' for i in range(4)], labels=[0,1,0,1], classes=['sick','well']); s.start('r')
    for k in range(4):
        c = s.case('r', k); text = case_html(c)+repr(c)
        assert not any(o in text for o in (*MODELS,'secret','sick','well')) and list(c.maps)==['A','B','C']
        for b in (c.image, *c.maps.values()): assert not any(o in b for o in (b'tEXt',b'iTXt',b'zTXt',b'eXIf',b'Plain',b'CBAM'))
    assert not any(m in repr(s) for m in MODELS)

def test_widgets_hold_no_model_before_the_end(make):
    pytest.importorskip('ipywidgets'); s = make(names=[f'secret{i}' for i in range(4)]); box = s.page('r')
    def states(w): yield json.dumps({k:v for k,v in w.get_state().items() if isinstance(v, (str,int,float,list,tuple)) and k!='children'}, default=str); yield from itertools.chain(*map(states, getattr(w, 'children', ())))
    for k in range(4):
        assert not any(o in t for t in states(box) for o in (*MODELS,'secret'))
        box.logic.choice.value = 'B'; box.logic.next.click()
    assert not any(o in t for t in states(box) for o in (*MODELS,'secret'))
    box.logic.finish.click(); assert any(m in t for t in states(box) for m in MODELS)

def test_percent_and_label_are_shown_only_when_asked(make, tmp_path):
    n = 3; res = {m: CamResult(v, np.zeros(n, int), np.array([[.9,.1],[.2,.8],[.5,.5]]), 'layer', (3,3), 'image', np.ones(n), 'class 0') for m,v in cams(n).items()}
    a = create_study(tmp_path/'a.db', images(n), res, labels=[0,1,1], classes=['sick','well']); b = create_study(tmp_path/'b.db', images(n), res, labels=[0,1,1], classes=['sick','well'], percent=True, show_label=True, shuffle=False)
    for s in (a,b): s.start('r')
    assert not a.case('r',0).percents and a.case('r',0).label is None
    assert [round(next(iter(b.case('r',k).percents.values()))) for k in range(3)]==[90,80,50] and 'P = 90.0 %' in case_html(b.case('r',0)) and 'sick' in case_html(b.case('r',0)) and 'P = ' not in case_html(a.case('r',0))
    with pytest.raises(ArgumentError, match='CamResults'): make(percent=True)
    for o in dict(labels=['sick']*n), dict(labels=[0,1,2]), dict(labels=[0,1,-1]), dict(labels=[0,1,1], classes=['sick']):
        with pytest.raises(ArgumentError, match='whole numbers from 0'): create_study(tmp_path/'c.db', images(n), res, percent=True, **o)
    assert not (tmp_path/'c.db').exists()

def tiny_net(seed):
    import torch; from torch import nn; torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1,6,3,2,1), nn.ReLU(), nn.Conv2d(6,6,3,1,1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6,2))

def test_heat_maps_of_real_networks(tmp_path):
    "Grad-CAM of two untrained networks on phantoms, for the true class; networks that explain the class they each predict are refused"
    import torch; from medattn_nb.data.datasets import load; from medattn_nb.lab.explain import gradcam
    d = load('phantom-texture', n=6, size=32, groups=2, seed=0); ims = [d.image(i) for i in range(6)]; x = torch.stack([torch.from_numpy(o/255.).float()[None] for o in ims]); y = d.labels
    nets = [tiny_net(i) for i in range(2)]; own = {f'net {i}':gradcam(o, x) for i,o in enumerate(nets)}; cams = {f'net {i}':gradcam(o, x, y) for i,o in enumerate(nets)}
    assert (own['net 0'].targets!=own['net 1'].targets).any(), 'the networks agree, so this test shows nothing'
    with pytest.raises(ArgumentError, match='different classes'): create_study(tmp_path/'s.db', ims, own)
    create_study(tmp_path/'own.db', ims, {k:o.maps for k,o in own.items()})
    s = create_study(tmp_path/'s.db', ims, cams, labels=y, classes=['well','sick'], groups=d.items.group, percent=True); s.start('r')
    for k in range(6):
        i,order = s._rows('SELECT image, maps FROM schedule WHERE reader=? AND position=?', 'r', k)[0]
        assert list(s.case('r',k).percents.values())==pytest.approx([100*cams[f'net {m}'].probs[i,y[i]] for m in json.loads(order)])

def test_texts_are_escaped(make):
    s = make(title='<script>x</script>', question='a<b', why='"why"'); pytest.importorskip('ipywidgets')
    box = s.page('r'); assert '<script>' not in box.children[0].value and 'a&lt;b' in box.logic.asks.value
    fill(s, 'r'); s.answer('r', 0, 'B', '<img src=x onerror=alert(1)>'); box = s.page('r'); box.logic.finish.click()
    assert '<img' not in box.logic.result.value and '&lt;img' in box.logic.result.value

# --- answers -------------------------------------------------------------------------------------------
def test_history_and_the_last_one_counts(make):
    s = make(); s.start('r')
    assert s.answer('r', 0, 'A', shown='t1', seconds=3.) and not s.answer('r', 0, 'A') and s.answer('r', 0, 'B', 'better', shown='t1', seconds=9.) and s.answer('r', 0, 'none', shown='t2', seconds=2.)
    h = s.answers(history=True); assert h.choice.tolist()==['A','B','none'] and (h.saved.str[-6:]=='+00:00').all() and h.saved.is_monotonic_increasing
    a, = s.answers().itertuples(); assert (a.choice,a.why,a.changes,a.seconds)==('none','',2,11.)
    assert s.case('r',0).choice=='none' and s.open_cases('r')==[1,2,3]

def test_resumes_after_everything_is_gone(make):
    s = make(repeat=2); s.start('r'); order = [s.case('r',k).image for k in range(6)]
    for k in (0,1,3): s.answer('r', k, 'C')
    again = ReaderStudy(s.path); assert again.start(' r ')=='r' and again.open_cases('r')==[2,4,5] and [again.case('r',k).image for k in range(6)]==order

def answer_and_die(path):
    ReaderStudy(path).answer('r', 2, 'B', 'in time'); os.kill(os.getpid(), getattr(signal,'SIGKILL',signal.SIGTERM))

def test_an_answer_is_on_the_disk_when_the_process_is_killed(make):
    s = make(); s.start('r'); p = START.Process(target=answer_and_die, args=(s.path,)); p.start(); p.join(120)
    assert p.exitcode not in (0,1,None) and s.case('r',2)[-2:]==('B','in time')

def test_no_answer_before_the_start_nor_for_what_is_not_there(make):
    s = make(); s.start('r')
    for f,says in ((lambda: s.answer('x', 0, 'A'), 'start it first'), (lambda: s.answer('r', 4, 'A'), '0 to 3'), (lambda: s.answer('r', -1, 'A'), '0 to 3'), (lambda: s.answer('r', 0, 'D'), 'A, B, C, none, unsure'),
                   (lambda: s.answer('r', 0, None), 'A, B, C'), (lambda: s.open_cases('x'), 'unknown'), (lambda: s.start(' '), '1 to 40'), (lambda: s.start('x'*41), '1 to 40'), (lambda: s.start('a\0b'), '1 to 40')):
        with pytest.raises(ArgumentError, match=says): f()
    assert not len(s.answers())

def test_extras_can_be_switched_off(make):
    s = make(extras={}); s.start('r')
    with pytest.raises(ArgumentError, match='A, B, C'): s.answer('r', 0, 'none')
    with pytest.raises(ArgumentError, match='two or more letters'): make(name='t.db', extras=dict(D='all'))
    for o in dict(none='Net + SE'), dict(none='x', unsure='x'), dict(none=''):
        with pytest.raises(ArgumentError, match='names of the models'): make(name='t.db', extras=o)

START = multiprocessing.get_context('fork' if 'fork' in multiprocessing.get_all_start_methods() else 'spawn')

def write_many(path, reader, n):
    s = ReaderStudy(path, timeout=60); s.start(reader)
    for i in range(n): s.answer(reader, i%4, 'ABC'[(i//4)%3], f'{reader} {i}')

def test_two_processes_write_at_once(make):
    s = make(); ps = [START.Process(target=write_many, args=(s.path, r, 24)) for r in ('r1','r2')]
    for p in ps: p.start()
    for p in ps: p.join(120)
    assert [p.exitcode for p in ps]==[0,0]
    h = s.answers(history=True); assert len(h)==48 and all(h[h.reader==r].why.tolist()==[f'{r} {i}' for i in range(24)] for r in ('r1','r2'))

def test_two_starts_of_one_reader_give_one_schedule(make):
    s = make(); ts = [threading.Thread(target=ReaderStudy(s.path, 60).start, args=('r',)) for _ in range(4)]
    for t in ts: t.start()
    for t in ts: t.join()
    assert s._rows('SELECT COUNT(*) FROM schedule')==[(4,)] and s.readers()==['r']

@pytest.fixture
def locked(make):
    s = make(); s.start('r'); con = sqlite3.connect(s.path, isolation_level=None); con.execute('BEGIN EXCLUSIVE'); s.timeout = .05
    yield s, con
    con.close()

def test_a_locked_file_is_said_and_nothing_is_lost(locked):
    s,con = locked
    with pytest.raises(DataError, match='locked'): s.answer('r', 0, 'A')
    con.execute('ROLLBACK'); assert s.answer('r', 0, 'A') and len(s.answers())==1

def test_a_locked_file_is_said_where_answers_are_read(locked):
    s,con = locked
    with pytest.raises(DataError, match='locked'): s.answers()

def test_no_result_without_a_note_that_it_was_opened(make):
    "While another program writes, the note cannot be made; a reader who had seen the result could then change his answers"
    s = make(); fill(s, 'r'); s.timeout = .05; con = sqlite3.connect(s.path, isolation_level=None); con.execute('BEGIN IMMEDIATE')
    with pytest.raises(DataError, match='locked'): s.table('r')
    con.execute('ROLLBACK'); con.close(); s.table('r')
    with pytest.raises(ArgumentError, match='no longer change'): s.answer('r', 0, 'B')

def test_the_page_says_that_it_was_not_saved(make):
    pytest.importorskip('ipywidgets'); s = make(); p = s.page('r').logic; s.timeout = .05
    con = sqlite3.connect(s.path, isolation_level=None); con.execute('BEGIN EXCLUSIVE')
    p.choice.value = 'B'
    assert 'NOT saved' in p.status.value and 'role=\'alert\'' in p.status.value and p.choice.value=='B' and p.next.disabled and p.back.disabled and p.again.layout.display is None
    con.execute('ROLLBACK'); con.close(); p.again.click()
    assert 'Saved' in p.status.value and 'NOT' not in p.status.value and not p.next.disabled and p.again.layout.display=='none' and s.case('r',0).choice=='B'

def answer_on_a_full_disk(path):
    import resource
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(path),)*2)
    try: ReaderStudy(path).answer('r', 0, 'A', 'x'*200_000)
    except DataError: os._exit(7)
    os._exit(8)

def test_a_full_disk_is_said_and_the_file_stays_whole(make):
    pytest.importorskip('resource'); s = make(); s.start('r'); s.answer('r', 1, 'B')
    p = START.Process(target=answer_on_a_full_disk, args=(s.path,)); p.start(); p.join(120)
    assert p.exitcode==7 and s.answers().choice.tolist()==['B'] and s._rows('PRAGMA integrity_check')==[('ok',)] and s.answer('r', 0, 'C')

def test_the_page_survives_a_lost_file(make):
    pytest.importorskip('ipywidgets'); s = make(); p = s.page('r').logic; moved = s.path.rename(s.path.with_suffix('.away'))
    p.choice.value = 'A'; assert 'NOT saved' in p.status.value and not s.path.exists()
    moved.rename(s.path); p.again.click(); assert s.case('r',0).choice=='A'

def test_a_file_that_was_replaced_is_noticed(make):
    "The file is made anew, models in another order, while a page and a study of the old one are open: letters would be read wrongly"
    pytest.importorskip('ipywidgets'); s = make(); p = s.page('r').logic; s.path.unlink(); new = make(models=MODELS[::-1]); new.start('r')
    p.choice.value = 'A'; assert 'NOT saved' in p.status.value and 'replaced' in p.status.value and not len(new.answers())
    fill(new, 'r')
    with pytest.raises(DataError, match='replaced'): s.results()

def test_the_file_is_found_from_another_folder(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path); make(); s = ReaderStudy('s.db'); (tmp_path/'d').mkdir(); monkeypatch.chdir(tmp_path/'d'); assert s.start('r')=='r'

def test_the_page_by_hand(make):
    pytest.importorskip('ipywidgets'); s = make(); p = s.page().logic
    assert not p.box.children[1].children[1].children[2].disabled and not p.id.continuous_update, 'letters that wait for a busy kernel are overtaken by the click on Start'
    p.go.click(); assert '1 to 40' in p.status.value
    p.id.value = 'r'; p.go.click(); assert 'Case 1 of 4' in p.progress.value and p.next.disabled and p.back.disabled and p.choice.value is None
    p.why.value = 'round'; assert 'choose a map' in p.status.value and not len(s.answers())
    p.choice.value = 'A'; assert s.case('r',0)[-2:]==('A','round') and '1 of 4' in p.status.value
    p.next.click(); assert p.why.value=='' and p.choice.value is None and len(s.answers())==1 and not p.back.disabled
    p.back.click(); assert p.choice.value=='A' and p.why.value=='round' and not p.next.disabled
    p.next.click()
    for _ in range(3): p.choice.value = 'unsure'; p.next.click()
    assert p.box.children[1] is p.end and '4 of 4' in p.status.value
    p.back.click(); assert 'Case 4 of 4' in p.progress.value
    p.next.click(); p.finish.click(); assert 'best model' in p.result.value and 'Thank you' in p.status.value
    q = s.page('r', reveal=False).logic; assert q.box.children[1] is q.end; q.back.click(); q.choice.value = 'B'
    assert 'no longer change' in q.status.value and s.case('r',3).choice=='unsure'

def test_hasty_clicks_skip_nothing(make):
    "Clicks that arrive before the browser has drawn the next case"
    pytest.importorskip('ipywidgets'); s = make(); p = s.page('r').logic
    p.back.click(); p.next.click(); assert p.k==0
    p.choice.value = 'A'; p.next.click(); p.next.click(); p.next.click(); assert p.k==1 and s.open_cases('r')==[1,2,3]
    p.back.click(); p.back.click(); p.back.click(); assert p.k==0 and p.choice.value=='A'
    for _ in range(3): p.next.click(); p.choice.value = 'B'
    for _ in range(3): p.next.click()
    assert p.box.children[1] is p.end and p.k==4

@pytest.fixture
def blocked(make):
    "A page on its second case, and a file that for now can be read but not written"
    pytest.importorskip('ipywidgets'); s = make(); p = s.page('r').logic; p.choice.value = 'B'; p.next.click(); s.timeout = .05
    con = sqlite3.connect(s.path, isolation_level=None); con.execute('BEGIN IMMEDIATE')
    yield s, p, con
    con.close()

@pytest.mark.parametrize('where', ['next','back'])
def test_a_click_under_way_does_not_leave_what_could_not_be_saved(blocked, where):
    "A reader writes and clicks at once: the text and the click are sent together, before the page can switch the button off"
    s,p,con = blocked; con.execute('ROLLBACK'); p.choice.value = 'C'; con.execute('BEGIN IMMEDIATE')
    p.why.value = 'spiculated'; getattr(p, where).click()
    assert p.k==1 and p.why.value=='spiculated' and 'NOT saved' in p.status.value
    con.execute('ROLLBACK'); p.again.click(); assert s.case('r',1)[-2:]==('C','spiculated') and not p.next.disabled
    getattr(p, where).click(); assert p.k==dict(next=2, back=0)[where]

def test_a_late_click_counts_for_the_case_that_was_on_the_screen(make):
    pytest.importorskip('ipywidgets'); s = make(); p = s.page('r').logic; p.choice.value = 'B'; old = p.choice,p.why; p.next.click()
    old[0].set_state(dict(index=2)); old[1].set_state(dict(value='late'))
    assert s.answers()[['position','choice','why']].values.tolist()==[[0,'C','late']] and 'for case 1' in p.status.value
    assert p.k==1 and p.choice.value is None and p.why.value=='' and p.next.disabled

def test_a_late_click_that_cannot_be_saved_is_not_forgotten(blocked):
    s,p,con = blocked; con.execute('ROLLBACK'); p.choice.value = 'A'; old = p.choice; p.next.click(); con.execute('BEGIN IMMEDIATE')
    old.set_state(dict(index=1)); assert 'NOT saved' in p.status.value; p.back.click(); assert p.k==2
    con.execute('ROLLBACK'); p.again.click(); assert s.case('r',1).choice=='B' and s.open_cases('r')==[2,3] and p.next.disabled

def test_text_without_a_choice_is_not_left_behind(make):
    pytest.importorskip('ipywidgets'); s = make(); p = s.page('r').logic; p.choice.value = 'B'; p.next.click()
    p.why.value = 'draft'; p.back.click(); assert p.k==1 and p.why.value=='draft' and 'not saved yet' in p.status.value
    p.why.value = ''; p.back.click(); assert p.k==0

def test_the_page_says_who_reads_and_how_far(make):
    pytest.importorskip('ipywidgets'); s = make(); p = s.page('R1').logic; assert '0 of 4 answered, reader R1' in p.progress.value
    p.choice.value = 'B'; assert '1 of 4 answered, reader R1' in p.progress.value

def test_an_id_in_other_capitals_is_the_same_reader(make):
    s = make(); s.start('R1'); s.answer('R1', 0, 'A'); assert s.start('r1')=='R1' and s.readers()==['R1'] and s.open_cases(s.start('r1'))==[1,2,3]

def test_the_end_screen_knows_that_the_result_was_opened(make):
    pytest.importorskip('ipywidgets'); s = make(); fill(s, 'r'); p = s.page('r').logic; assert 'can still go back' in p.told.value and not p.back.disabled
    p.finish.click(); q = s.page('r').logic; assert 'final' in q.told.value and 'go back' not in q.told.value and q.back.disabled

def test_half_an_emoji_does_not_lose_the_answer(make):
    s = make(); s.start('r'); assert s.answer('r', 0, 'A', 'x\ud83d') and s.case('r',0)[-2:]==('A','x?')

def test_a_page_that_does_not_reveal(make):
    pytest.importorskip('ipywidgets'); s = make(); p = s.page('r', reveal=False).logic
    for _ in range(4): p.choice.value = 'A'; p.next.click()
    p.finish.click(); assert p.result.value=='' and s._rows('SELECT unblinded FROM readers')==[(None,)]

# --- results -------------------------------------------------------------------------------------------
def test_blind_until_all_cases_are_done(make):
    s = make(); s.start('r'); s.start('late'); fill(s, 'r', always('Net + CBAM'))
    for f in (s.results, s.counts, s.test, s.agreement, lambda: s.to_csv('x.csv'), lambda: s.table('late')):
        with pytest.raises(ResultError, match='late has 4 open'): f()
    assert s.table('r')['best model'].tolist()==['Net + CBAM']*4 and 'status' not in s.table('r')
    with pytest.raises(ResultError, match='nothing has been answered'): s.table('late', force=True)

def test_a_forced_result_says_so_and_later_answers_are_marked(make):
    s = make(); s.start('r'); s.answer('r', 0, 'A'); s.answer('r', 1, 'B')
    t = s.table('r', force=True); assert t.status.tolist()==['interim']*2 and s.counts(force=True).attrs['interim'] and 'status' in s.counts(force=True)
    fill(s, 'r'); df = s.results('r').sort_values('position'); assert df.status.tolist()==['final']*2+['after unblinding']*2 and 'status' in s.table('r')
    with pytest.raises(ArgumentError, match='no longer change'): s.answer('r', 0, 'C')

def test_the_right_model_is_behind_every_letter(make):
    for m in MODELS:
        s = make(6, name=f'{MODELS.index(m)}.db', repeat=3, seed=7); fill(s, 'r', always(m))
        assert s.results().model.tolist()==[m]*9 and s.counts().votes[m]==6 and s.counts().votes.sum()==6
        assert len({letter_of(s, 'r', k, m) for k in range(9)})>1, 'the letters never changed, so this test shows nothing'

def test_the_picture_of_a_letter_is_that_of_its_model(make):
    s = make(seed=3); s.start('r')
    for k in range(4):
        c = s.case('r', k); i, = s._rows('SELECT image FROM schedule WHERE reader=? AND position=?', 'r', k)[0]
        for j,m in enumerate(MODELS): assert s._rows('SELECT png FROM maps WHERE image=? AND model=?', i, j)==[(c.maps[letter_of(s, 'r', k, m)],)]

def test_counts_and_tests_of_known_votes(make):
    s = make(8); pick = ['Net + SE']*6+['Plain net']
    fill(s, 'r', lambda s, r, k: letter_of(s, r, k, pick[k]) if k<7 else 'unsure')
    c = s.counts(); assert c.votes.to_dict()=={'Plain net':1,'Net + SE':6,'Net + CBAM':0,'none of them':0,'cannot tell':1} and c.attrs==dict(votes=7, groups=7, readers=1, interim=False, level=.95)
    ref = stats.binomtest(6, 7).proportion_ci(); assert tuple(c.loc['Net + SE',['low','high']])==pytest.approx((ref.low,ref.high)) and c.share['Net + SE']==pytest.approx(6/7) and np.isnan(c.share['cannot tell'])
    t = s.test(); assert t.p['any model preferred']==pytest.approx(multinomial_test([1,6,0])) and t.p['another than Plain net']==pytest.approx(stats.binomtest(6, 7, 2/3).pvalue)
    ps = [stats.binomtest(v, 7, 1/3).pvalue for v in (1,6,0)]; assert t.p[list(MODELS)].tolist()==pytest.approx(ps) and t.p_holm['Net + SE']==pytest.approx(3*ps[1])
    assert s.test(alternative='greater').p['another than Plain net']==pytest.approx(stats.binomtest(6, 7, 2/3, 'greater').pvalue) and s.test('Net + SE').votes['another than Net + SE']==1
    with pytest.raises(ArgumentError, match='Plain net'): s.test('SE')
    assert reader_figure(c).axes[0].get_xlim()[0]<0 and '7 votes, 7 patients, 1 reader' in reader_figure(c).axes[0].get_title('left')

def test_patients_and_readers_make_bunches(make):
    s = make(8, groups=['p','p','q','q','r','r','s','s'])
    for r in 'ab': fill(s, r, always('Net + SE'))
    c,t = s.counts(),s.test(); assert c.attrs['groups']==4 and c.attrs['votes']==16 and c.low['Net + SE']==pytest.approx(share_interval(4, 4).low)
    assert t.p['Net + SE']==pytest.approx(3**-4) and 'within a patient' in t.null['Net + SE'] and 'relabellings' in t.null['any model preferred']

def test_unequal_bunches_count_for_less(make):
    "Ten images of one patient and one of each of seven others: the share hangs on that one patient, so it is not worth eight"
    from math import comb
    sizes = [10]+[1]*7; s = make(17, groups=[g for g,n in enumerate(sizes) for _ in range(n)])
    fill(s, 'r', lambda s, r, k: letter_of(s, r, k, 'Net + SE' if s._rows('SELECT image FROM schedule WHERE reader=? AND position=?', r, k)[0][0]<10 else 'Plain net'))
    c = s.counts(); n = 17**2/107; assert tuple(c.loc['Net + SE',['share','low','high']])==pytest.approx(tuple(share_interval(10/17*n, n)))
    def cover(n, p): return sum(p**(b+a)*(1-p)**(8-b-a)*comb(7, a) for b in (0,1) for a in range(8) if (iv := share_interval((10*b+a)/17*n, n)).low<=p<=iv.high)
    assert cover(8, .25)<.8 and min(cover(n, p) for p in (.1,.25,.5,.75))>.95

def test_only_extras(make):
    s = make(); fill(s, 'r', lambda *a: 'none')
    assert s.counts().votes['none of them']==4 and s.counts().share.isna().all()
    with pytest.raises(ResultError, match='extras'): s.test()

def test_maps_that_are_the_same_can_be_left_out(tmp_path):
    m = cams(4); m['Net + SE'][:2] = m['Plain net'][:2]*3+0
    s = create_study(tmp_path/'a.db', images(4), m); fill(s, 'r')
    assert s.counts().attrs['votes']==4 and s.counts(alike=.99).attrs['votes']==2
    with pytest.raises(ResultError, match='larger value of alike'): s.counts(alike=-1)
    assert R._most_alike([np.zeros((5,5)), np.ones((9,9))])==1 and R._most_alike([np.zeros((5,5)), np.eye(5)])==0

def test_agreement_of_known_answers(make):
    s = make(6, repeat=6, groups=list('aabbcc')); x = ['Plain net','Plain net','Net + SE','Net + SE','Net + CBAM','Net + CBAM']; y = x[:4]+['Net + SE','Plain net']
    def by(which): return lambda s, r, k: letter_of(s, r, k, which[s._rows('SELECT image FROM schedule WHERE reader=? AND position=?', r, k)[0][0]])
    fill(s, 'x', by(x)); fill(s, 'y', by(y)); a = s.agreement(boots=100)
    two = a.loc['x and y'].set_index('measure'); counts = np.array([[int(u==m)+int(v==m) for m in (*MODELS,'n','u')] for u,v in zip(x,y)])
    code = {m:i for i,m in enumerate(MODELS)}; assert two.value["Cohen's kappa"]==pytest.approx(R._cohen(np.array([[code[u],code[v]] for u,v in zip(x,y)])))
    assert two.value["Krippendorff's alpha"]==pytest.approx(krippendorff_alpha(counts)) and two.value["Gwet's AC1"]==pytest.approx(gwet_ac1(counts)) and two.agreement.tolist()==pytest.approx([4/6]*3) and (two.images==6).all()
    assert (two.low<=two.value).all() and (two.value<=two.high).all()
    assert a.loc['x, twice'].value.tolist()==[1,1] and a.loc['y, twice'].agreement.tolist()==[1,1]
    fill(s, 'z', by(x)); s.start('missing'); k = s.open_cases('missing')[0]; s.answer('missing', k, 'A'); b = s.agreement(['x','y','z'], boots=100); assert "Fleiss' kappa" in b.measure.values
    c = s.agreement(force=True, boots=100); assert "Krippendorff's alpha" in c.measure.values and c.loc['4 readers'].images.max()==6
    pd.testing.assert_frame_equal(s.agreement(['x','y'], boots=100), a)

def test_one_reader_without_repeats_agrees_with_nobody(make):
    s = make(); fill(s, 'r')
    with pytest.raises(ResultError, match='two readers'): s.agreement()

# --- files ---------------------------------------------------------------------------------------------
def test_merging(make, tmp_path):
    a,b,c = (make(name=f'{o}.db', seed=1) for o in 'abc'); fill(a, 'r1', always('Net + SE')); fill(b, 'r2', always('Plain net')); b.results()
    m = merge_studies([a.path, b.path], tmp_path/'m.db')
    assert m.readers()==['r1','r2'] and m.counts().votes[['Net + SE','Plain net']].tolist()==[4,4] and m.info==a.info | dict(created=m.info['created'])
    assert m._rows('SELECT COUNT(*) FROM readers WHERE unblinded IS NOT NULL')[0][0]>=1 and [m.case('r1',k)[2:4] for k in range(4)]==[a.case('r1',k)[2:4] for k in range(4)]
    pd.testing.assert_frame_equal(m.answers().drop(columns='saved'), pd.concat([a.answers(), b.answers()], ignore_index=True).drop(columns='saved'))
    fill(c, 'r1')
    with pytest.raises(ArgumentError, match='r1 in two'): merge_studies([a.path, c.path], tmp_path/'x.db')
    assert not (tmp_path/'x.db').exists() and merge_studies([a.path, c.path], tmp_path/'y.db', rename=True).readers()==['r1','r1 (c)']
    assert merge_studies([a.path, a.path], tmp_path/'z.db').readers()==['r1']
    copy = tmp_path/'copy.db'; copy.write_bytes(a.path.read_bytes()); ReaderStudy(copy).results()  # opened in one copy only
    for i,o in enumerate(([a.path,copy],[copy,a.path])): assert merge_studies(o, tmp_path/f'copies{i}.db')._rows('SELECT unblinded FROM readers')==ReaderStudy(copy)._rows('SELECT unblinded FROM readers')!=[(None,)]
    with pytest.raises(DataError, match='another study'): merge_studies([a.path, make(name='d.db', seed=2).path], tmp_path/'x.db')
    with pytest.raises(ArgumentError, match='there already'): merge_studies([a.path], tmp_path/'m.db')
    with pytest.raises(ArgumentError, match='one or more'): merge_studies([], tmp_path/'x.db')

def test_the_fingerprint_knows_every_part(make):
    base = make(name='0.db').info['fingerprint']; others = [dict(seed=1), dict(title='x'), dict(question='x'), dict(names=list('abcd')), dict(groups=list('aabb')), dict(repeat=1), dict(shuffle=False), dict(extras={}), dict(models=('a','b','c'))]
    prints = [make(name=f'{i+1}.db', **o).info['fingerprint'] for i,o in enumerate(others)]
    assert len({base,*prints})==len(others)+1 and make(name='same.db').info['fingerprint']==base

def test_csv(make, tmp_path):
    s = make(names=['=1+1','b','c','d']); fill(s, 'r'); s.answer('r', 0, 'B', '=HYPERLINK("x")'); s.answer('r', 1, 'B', 'größer, "quoted"\nline')
    blind = s.to_csv(tmp_path/'blind.csv', blind=True); assert not any(m in blind.read_text('utf-8-sig') for m in MODELS)
    p = s.to_csv(tmp_path/'a.csv'); assert p.read_bytes()[:3]==b'\xef\xbb\xbf'
    rows = list(csv.DictReader(p.open(encoding='utf-8-sig', newline=''))); assert len(rows)==4 and {'größer, "quoted"\nline', '\'=HYPERLINK("x")'}<={o['why'] for o in rows} and "'=1+1" in {o['image'] for o in rows}
    with pytest.raises(ArgumentError, match='there already'): s.to_csv(p)

def test_a_file_that_cannot_be_written_can_be_read(make):
    s = make(); fill(s, 'r'); os.chmod(s.path, 0o444)
    if os.access(s.path, os.W_OK): pytest.skip('this user may write everything')
    assert len(s.table('r'))==4
    with pytest.raises(DataError, match='readonly'): s.answer('r', 0, 'B')

@pytest.mark.parametrize('change,says', [
    (dict(maps={}), '2 to 26 models'), (dict(maps=lambda n: {'one':cams(n)[MODELS[0]]}), '2 to 26'), (dict(maps=lambda n: {'SE':cams(n)[MODELS[0]], ' SE ':cams(n)[MODELS[1]]}), 'a name of its own'),
    (dict(maps=lambda n: {str(i):cams(n)[MODELS[0]] for i in range(27)}), '2 to 26'), (dict(maps=lambda n: [1,2]), '2 to 26'), (dict(maps=lambda n: {k:v[:2] for k,v in cams(n).items()}), 'each of the 4 images'),
    (dict(maps=lambda n: {k:v[:,None] for k,v in cams(n).items()}), r'\(H,W\)'), (dict(maps=lambda n: {k:-v for k,v in cams(n).items()}), 'negative'), (dict(maps=lambda n: {k:v*np.nan for k,v in cams(n).items()}), 'nan'),
    (dict(images=[]), 'at least one'), (dict(images=[np.zeros((3,4,5,6))]*4), 'expected images'), (dict(images=[np.full((9,9), np.nan)]*4), 'finite'), (dict(images=[np.full((9,9,3), 200.)]*4), 'uint8'),
    (dict(names=['a','a','b','c']), 'stands twice'), (dict(names=['a']), 'one for each of the 4'), (dict(groups=[1,2]), 'one for each of the 4'), (dict(labels=[1]), 'one for each of the 4'),
    (dict(repeat=5), '0 to 4'), (dict(repeat=-1), '0 to 4'), (dict(repeat=True), '0 to 4')])
def test_bad_input_leaves_no_file(tmp_path, change, says):
    kw = dict(images=images(4), maps=cams(4)); kw.update({k: v(4) if callable(v) else v for k,v in change.items()})
    with pytest.raises((ArgumentError,ShapeError), match=says): create_study(tmp_path/'s.db', **kw)
    assert not list(tmp_path.iterdir())

def test_images_of_all_kinds_and_sizes(tmp_path):
    import torch
    ims = [np.zeros((5,7)), np.full((9,4,3), 255, np.uint8), torch.rand(1,6,6), np.random.rand(3,8,11)]; maps = {m: [np.eye(3), np.zeros((2,5)), torch.ones(6,6), np.ones((1,1))] for m in 'ab'}
    s = create_study(tmp_path/'s.db', ims, maps); fill(s, 'r'); assert s.counts().attrs['votes']==4
    with pytest.raises(DataError, match='folder'): create_study(tmp_path/'no'/'s.db', ims, maps)

def test_a_folder_name_with_odd_characters(tmp_path):
    d = tmp_path/'a?b#c %20 é'; d.mkdir(); s = create_study(d/'s.db', images(2), cams(2)); fill(s, 'r'); assert len(ReaderStudy(d/'s.db').answers())==2

def test_the_three_steps_of_the_page_to_the_letter(tmp_path, monkeypatch):
    "What the page tells a newcomer to type, in an empty folder"
    pytest.importorskip('ipywidgets'); page = json.loads((ROOT/'nbs'/'lab'/'60_lab.reader.ipynb').read_text('utf-8'))
    text = ''.join(next(c['source'] for c in page['cells'] if ''.join(c['source']).startswith('## A study in three steps')))
    prepare,read,evaluate = re.findall(r'```python\n(.*?)```', text, re.S); monkeypatch.chdir(tmp_path)
    exec(prepare, dict(images=images(3), cams=cams(3), patients=[1,1,2]))
    seen = {}; *first,last = read.strip().splitlines(); exec('\n'.join(first), seen); p = eval(last, seen).logic
    p.id.value = 'R1'; p.go.click()
    for _ in range(3): p.choice.value = 'A'; p.next.click()
    p.finish.click(); assert not p.result.value and 'Thank you' in p.status.value
    seen = {}; *first,last = evaluate.strip().splitlines(); exec('\n'.join(first), seen); counts,test = eval(last, seen)
    assert counts.votes.sum()==3 and counts.attrs['groups']==2 and 'any model preferred' in test.index

def test_what_is_no_study(tmp_path):
    with pytest.raises(DataError, match='no such file'): ReaderStudy(tmp_path/'x.db')
    (tmp_path/'x.db').write_text('hello, this is not a database at all'*50)
    with pytest.raises(DataError, match='not a reader study'): ReaderStudy(tmp_path/'x.db')
    (tmp_path/'e.db').touch()
    with pytest.raises(DataError, match='not a reader study'): ReaderStudy(tmp_path/'e.db')

def test_the_picture_of_a_case(make):
    s = make(); s.start('r'); s.answer('r', 0, 'B'); f = case_figure(s.case('r',0)); assert len(f.axes)==4 and '◉ Map B' in f._supxlabel.get_text() and '○ Map A' in f._supxlabel.get_text()

def test_the_papers_answers():
    d = paper_answers(); assert d.groupby('task').size().to_dict()==dict(chest=6, skin=6) and d.model.notna().sum()==8 and (d.note[d.model.isna()].str.contains('legible')).all() and 'ResNet-18' not in d.model.dropna().tolist()
