"The report, on records made by hand: nothing is trained here"
import re
from html.parser import HTMLParser
import numpy as np
import pytest
import torch
from medattn_nb.core import ArgumentError, ResultError
from medattn_nb.figures import fig_png
from medattn_nb.lab import report
from medattn_nb.lab.experiments import Experiment, Published, _describe, compare
from medattn_nb.lab.ledger import environment, make_record
from medattn_nb.lab.training import Recipe, checkpoint_path
from medattn_nb.metrics import binary_metrics

BASE = Recipe(data='phantom-texture', data_options=dict(n=48, size=32, fractions=(.25,.25,.5)), size=32, epochs=3, batch_size=8)
ROWS = {'ResNet-18':{}, '+ SE':dict(attention='se'), '+ CBAM':dict(attention='cbam')}
SIGNAL = {'ResNet-18':1., '+ SE':1.2, '+ CBAM':.9}

def experiment(rows=ROWS, **kw):
    kw = {**dict(presets=dict(smoke=BASE, paper=BASE), seeds=dict(smoke=(0,1), paper=(0,1)), published={list(rows)[-1]: Published(None, 1, 'Table 3')}), **kw}
    return Experiment('demo', 'texture', 'Does it help?', rows, note='Everything is smaller.', **kw)

@pytest.fixture(scope='module')
def data(): return BASE.load()

def scores(data, split, signal, seed):
    it = data.items[data.items.split==split]
    s = 1/(1+np.exp(-signal*(it.label.to_numpy()-.5)-np.random.default_rng([seed, *split.encode()]).normal(size=len(it))))
    return dict(file=it.file.tolist(), label=it.label.tolist(), group=it.group.tolist(), score=s.round(6).tolist())

def record(data, row='ResNet-18', seed=0, preset='smoke', rows=ROWS, **over):
    recipe = BASE.replace(**rows[row], seed=seed)
    sc = {s: scores(data, s, SIGNAL.get(row, 1.), seed+len(row)) for s in ('valid','test')}
    hist = [dict(epoch=e, lr=.05, train_loss=2./(e+1), valid_loss=10.**(3-e), accuracy=.5, auc=.5+.1*e, seconds=1.) for e in range(3)]
    return make_record(**{**dict(paper='demo', table='texture', row=row, preset=preset, recipe=recipe.to_dict(), recipe_hash=recipe.hash, seed=seed, data=_describe(data),
        metrics={k: binary_metrics(v['label'], v['score'], groups=v['group']) for k,v in sc.items()}, history=hist, scores=sc, parameters=11_000_000, seconds=3., memory_mb=None,
        resumed=0, environment=environment('cpu')), **over})

@pytest.fixture(scope='module')
def records(data): return [record(data, r, s) for s in (0,1) for r in ROWS]

class Page(HTMLParser):
    "A strict reading of a page: every tag is closed, in order"
    void = {'meta','img','br'}
    def __init__(self, html):
        super().__init__(); self.open,self.tags,self.urls,self.alts,self.ids = [],[],[],[],[]
        self.feed(html); self.close()
        assert not self.open
    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.void: self.open.append(tag)
        if tag=='img': self.alts.append(dict(attrs)['alt'])
        self.urls += [v for k,v in attrs if k in ('src','href','srcset','data','action','poster','background')]
        assert not [k for k,_ in attrs if k.startswith('on')]
    def handle_endtag(self, tag): assert self.open.pop()==tag

def read(p):
    "The page and its text without images, checked"
    html = p.read_text(encoding='utf-8')
    page = Page(html)
    assert html.startswith('<!DOCTYPE html>\n<html lang="en">') and page.tags.count('h1')==1
    assert all(o.startswith('data:image/png;base64,') for o in page.urls)
    assert not {'script','link','iframe','object','embed','form'} & set(page.tags)
    assert all(len(o.split())>5 for o in page.alts)
    assert page.tags.count('caption')==page.tags.count('table')
    assert 'url(' not in html and '@import' not in html and "default-src 'none'" in html
    return page,re.sub(r'base64,[^"]+', '', html)

def write(exp, records, path, preset='smoke', **kw): return report.write_report(exp, records, preset, path/'r.html', boots=100, **kw)

@pytest.fixture(scope='module')
def full(records, tmp_path_factory): return read(write(experiment(), records, tmp_path_factory.mktemp('report')))

def test_is_complete_and_offline(full):
    page,html = full
    assert len(page.alts)==4
    for o in ('synthetic images; says nothing about patients', 'Everything is smaller.', 'prefers-color-scheme:dark', '@media print', 'width=device-width', '+ SE', '+ CBAM',
        'Table 3', 'medattn run demo/texture --preset smoke', 'phantom-texture', 'the weights of these runs were not kept'): assert o in html

def test_same_records_give_the_same_page(records, full, tmp_path):
    assert re.sub(r'base64,[^"]+', '', write(experiment(), records[::-1], tmp_path).read_text(encoding='utf-8'))==full[1]

def test_rows_not_run_say_so(records, tmp_path):
    _,html = read(write(experiment(), [r for r in records if r['row']!='+ CBAM'], tmp_path))
    assert 'Not run: + CBAM.' in html and 'not run' in html

def test_no_baseline(records, tmp_path):
    _,html = read(write(experiment(), [r for r in records if r['row']=='+ SE'], tmp_path))
    assert 'the baseline, has no finished run' in html

def test_baseline_alone(records, tmp_path):
    _,html = read(write(experiment(), [r for r in records if r['row']=='ResNet-18'], tmp_path))
    assert 'only ResNet-18, the baseline, was run' in html

def test_single_seed(records, tmp_path):
    _,html = read(write(experiment(), [r for r in records if r['seed']==1], tmp_path))
    assert 'Every model was trained once' in html and '--seeds 1' in html

def test_nothing(tmp_path):
    page,html = read(write(experiment(), [], tmp_path))
    assert not page.alts and 'Nothing can be compared yet' in html

def test_records_of_other_presets_and_tables_stay_out(data, records, tmp_path):
    odd = [record(data, '+ SE', 7, preset='paper'), record(data, '+ SE', 8, table='other'), record(data, '+ SE', 9, paper='other')]
    assert report.pick_records(experiment(), odd+records, 'smoke')==report.pick_records(experiment(), records, 'smoke')

def test_unequal_seeds_are_said(data, records, tmp_path):
    _,html = read(write(experiment(), [*records, record(data, '+ SE', 5)], tmp_path))
    assert 'Not every model has the same seeds' in html

def test_mixed_settings_are_refused(data, records, tmp_path):
    odd = record(data, '+ SE', 5); odd['recipe']['epochs'] = 4
    with pytest.raises(ResultError, match='different recipes'): write(experiment(), [*records, odd], tmp_path)

def test_settings_that_are_not_the_presets_are_said(records, tmp_path):
    _,html = read(write(experiment(presets=dict(smoke=BASE.replace(epochs=9)), seeds=dict(smoke=(0,1))), records, tmp_path))
    assert 'not the preset smoke as it stands: epochs = 3' in html and '--set epochs=3' in html

BAD = '<script>alert("1")</script> & $x_1$ ${css} \'"'
def test_hostile_names(data, tmp_path):
    rows = {BAD:{}, 'b'+BAD:dict(attention='se')}
    exp = Experiment('demo', 'texture', BAD, rows, dict(smoke=BASE), dict(smoke=(0,)), {'b'+BAD: Published(.9, -1, BAD)}, BAD)
    rs = [record(data, r, 0, rows=rows) for r in rows]
    for r in rs: r['environment']['device_name'] = BAD; r['data']['classes'] = [BAD,'b']; r['data']['name'] = BAD
    page,html = read(write(exp, rs, tmp_path))
    assert '<script' not in html and '&lt;script&gt;' in html and '${css}' in html

def test_real_images_need_the_folder(data, records, tmp_path):
    real = [dict(r, data=dict(r['data'], synthetic=False)) for r in records]
    page,html = read(write(experiment(), real, tmp_path))
    assert 'Real images are shown only' in html and len(page.alts)==3 and '--data-root FOLDER' in html and 'says nothing about patients' not in html

def test_other_data_are_not_shown(data, records, tmp_path):
    other = [dict(r, data=dict(r['data'], fingerprint='0'*64)) for r in records]
    assert 'not the images that the runs were made with' in read(write(experiment(), other, tmp_path))[1]

def test_missing_data_are_said(records, tmp_path):
    real = [dict(r, data=dict(r['data'], synthetic=False), recipe=dict(r['recipe'], data='covid-ct', data_options=[])) for r in records]
    page,html = read(write(experiment(), real, tmp_path, root=tmp_path/'none'))
    assert 'Left out:' in html and len(page.alts)==3

def test_empty_folder_of_checkpoints(records, tmp_path):
    page,html = read(write(experiment(), records, tmp_path, checkpoints=tmp_path))
    assert 'none of these runs has its weights there' in html and len(page.alts)==4

def test_split_without_scores(records, tmp_path):
    less = [dict(r, scores={'valid': r['scores']['valid']}) for r in records]
    with pytest.raises(ResultError, match='has scores of valid'): write(experiment(), less, tmp_path, split='test')
    assert not list(tmp_path.iterdir())
    for kw in ({}, dict(split='valid')): assert 'valid images' in read(write(experiment(), less, tmp_path, **kw))[1]

def test_unknown_preset(records, tmp_path):
    with pytest.raises(ArgumentError, match='demo/texture has smoke, paper'): write(experiment(), records, tmp_path, 'laptop')

# --- the answer ----------------------------------------------------------------------------------------
def table(records, **cols): return compare(experiment(), records, 'smoke', boots=100).assign(**cols)
NAN = np.nan

@pytest.mark.parametrize('p,low,high,says', [
    ((.5,.31), (-.1,-.1), (.1,.2), r'None of the 2 models compared differs from ResNet-18 by more than chance allows on these 24 test images \(smallest corrected p 0\.310\)\. Differences in AUC from −0\.100 to \+0\.200'),
    ((.01,.5), (.02,-.1), (.1,.2), r'\+ SE is better than ResNet-18 .* \+ CBAM does not differ from it'),
    ((.01,.01), (.02,-.2), (.1,-.1), r'\+ SE is better .*; \+ CBAM is worse'),
    ((.5,.01), (-.1,-.1), (.1,.2), r'\+ CBAM differs from ResNet-18 on these images alone'),
    ((NAN,NAN), (0,0), (0,0), r'None of the 2 models .* \(smallest corrected p not defined\)')])
def test_answer(records, p, low, high, says):
    mid = [NAN, *(.5*(a+b) for a,b in zip(low, high))]
    df = table(records, p_holm=[NAN,*p], low=[NAN,*low], high=[NAN,*high], diff=mid)
    assert re.match(says, report.answer(df, 24))

# --- figures -------------------------------------------------------------------------------------------
def test_figures_of_little(data):
    rs = [dict(record(data), history=[dict(epoch=0, train_loss=None, auc=None)])]
    df = compare(experiment(), rs, 'smoke', boots=100)
    for fig in (report.auc_figure(df, report.run_aucs(rs)), report.curves_figure(rs), report.roc_figure(rs), report.sample_figure(data, 1)): assert fig_png(fig)[:4]==b'\x89PNG'

def test_colours_follow_the_rows(records):
    some = [r for r in records if r['row']!='+ SE']
    colour = lambda fig: {o.get_label().split(':')[0]: o.get_color() for o in fig.axes[0].lines}
    a,b = colour(report.roc_figure(records, rows=list(ROWS))),colour(report.roc_figure(some, rows=list(ROWS)))
    assert a['+ CBAM']==b['+ CBAM']!=a['+ SE']

def test_sample_figure_with_a_class_that_has_few(data):
    few = data.take(np.r_[np.flatnonzero(data.labels==0)[:3], np.flatnonzero(data.labels==1)[:1]])
    assert len(report.sample_figure(few, 3).axes)==6

# --- trained models ------------------------------------------------------------------------------------
def checkpoint(recipe, folder, data, epoch=3):
    learn = recipe.learner(data, device='cpu')
    torch.save(dict(epoch=epoch, model=learn.model.state_dict()), checkpoint_path(recipe, folder))
    return learn.model

def test_load_trained(data, tmp_path):
    r = BASE.replace(amp='bf16', compile=True)
    with pytest.raises(ResultError, match='no weights of this run'): report.load_trained(r, tmp_path, data)
    model = checkpoint(r, tmp_path, data)
    learn = report.load_trained(r, tmp_path, data)
    assert all(torch.equal(a, b) for a,b in zip(model.state_dict().values(), learn.model.state_dict().values()))
    checkpoint(r, tmp_path, data, epoch=2)
    with pytest.raises(ResultError, match='2 of 3 epochs'): report.load_trained(r, tmp_path, data)
    checkpoint_path(r, tmp_path).write_bytes(b'x')
    with pytest.raises(ResultError, match='cannot be read'): report.load_trained(r, tmp_path, data)

def test_cams_of_the_runs_that_have_weights(data, records, tmp_path):
    checkpoint(Recipe.from_dict(records[1]['recipe']), tmp_path, data)
    page,html = read(write(experiment(), records, tmp_path, checkpoints=tmp_path))
    assert len(page.alts)==5 and 'random weights' in html and 'energy inside mask' in html

def test_single_runs_are_named(records):
    "Where a difference is reported from one run of a model, the sentence says what its interval leaves out"
    sure = dict(diff=[np.nan,.2], low=[np.nan,.1], high=[np.nan,.3], p=[np.nan,.001], p_holm=[np.nan,.001])
    df = table(records)
    df = df.iloc[:2].assign(**sure)
    assert 'single runs' in report.answer(df.assign(runs=1), 100) and 'single runs' not in report.answer(df.assign(runs=2), 100)
