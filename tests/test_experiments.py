"Experiments: what is run, what is refused, and the table from records that are incomplete or do not belong together"
import dataclasses
import numpy as np
import pandas as pd
import pytest
from medattn_nb.core import ArgumentError, ResultError
from medattn_nb.lab import experiments
from medattn_nb.lab.experiments import Experiment, Progress, Published, compare, pool, run_experiment, scored_part, show_table
from medattn_nb.lab.ledger import Ledger, make_record
from medattn_nb.lab.training import Recipe
from medattn_nb.metrics import METRICS, mean_auc_ci, multiclass_metrics, paired_auc_test, roc_auc
from test_ledger import parts

TINY = Recipe(data='phantom-texture', data_options=dict(n=24, size=16), size=16, epochs=1, batch_size=8)
ROWS = {'plain':{}, 'SE':dict(attention='se'), 'GC':dict(attention='gc')}
EXP = Experiment('toy', 't', 'A toy', ROWS, presets=dict(smoke=TINY, laptop=TINY.replace(epochs=2)), seeds=dict(smoke=(0,1), laptop=(0,)),
    published={'SE':Published(.9, 1, 'Table 1'), 'GC':Published(None, -1, 'Table 1')})

def record(row='plain', seed=0, preset='smoke', shift=1., n=60, files=None, fingerprint='f', labels=None, recipe=None, **kw):
    "A record of `EXP` with drawn scores; `shift` parts the classes"
    rng = np.random.default_rng([seed, *row.encode()])
    y = np.arange(n)%2 if labels is None else np.array(labels)
    s = np.clip(rng.normal(y*shift, 1), -4, 4)
    recipe = recipe or dict(EXP.recipes(preset, (seed,)))[row]
    return make_record(**parts(row=row, seed=seed, preset=preset, recipe=recipe.to_dict(), recipe_hash=recipe.hash,
        data=dict(name='phantom-texture', synthetic=True, fingerprint=fingerprint, split_fingerprint='s'),
        scores=dict(test=dict(file=files or [f'{i:03d}' for i in range(n)], label=y.tolist(), group=[f'{i:03d}' for i in range(n)], score=s.round(6).tolist())), **kw))

def both(shift=1., seeds=(0,1), rows=ROWS): return [record(r, s, shift=shift if r=='plain' else shift+1) for r in rows for s in seeds]

# --- what is run ---------------------------------------------------------------------------------------
def test_recipes():
    got = EXP.recipes('smoke')
    assert [(row, o.seed, o.attention) for row,o in got]==[('plain',0,None),('SE',0,'se'),('GC',0,'gc'),('plain',1,None),('SE',1,'se'),('GC',1,'gc')]
    assert len({o.hash for _,o in got})==6
    assert all(o.epochs==5 and o.lr==.1 for _,o in EXP.recipes('smoke', (3,), epochs=5, lr=.1))

def test_a_row_keeps_what_makes_it_a_row(): assert [o.attention for _,o in EXP.recipes('smoke', (0,), attention='cbam')]==['cbam','se','gc']

def test_bad_experiments():
    with pytest.raises(ArgumentError, match='toy/t has smoke, laptop'): EXP.recipes('paper')
    with pytest.raises(ArgumentError, match='choose from smoke'): dataclasses.replace(EXP, presets=dict(tiny=TINY))
    with pytest.raises(ArgumentError, match='name of a row'): dataclasses.replace(EXP, published={'ResNet':Published()})

class Seen(Progress):
    def __init__(self): self.said = []
    def start(self, i, n, row, recipe): self.said.append(('start', i, n, row, recipe.seed))
    def end(self, record, skipped): self.said.append(('end', record['row'], skipped))

def known(**kw):
    "A record of the plain row's first seed as `run_experiment` would have written it"
    data = TINY.load()
    d = dict(name=data.info.name, synthetic=True, fingerprint=data.fingerprint, split_fingerprint=data.split_fingerprint)
    return make_record(**parts(row='plain', recipe=TINY.to_dict(), recipe_hash=TINY.hash, data={**d, **kw}))

def no_training(*a, **kw): raise AssertionError('a finished run was trained again')

def test_a_finished_run_is_skipped(tmp_path, monkeypatch):
    one,seen = dataclasses.replace(EXP, rows={'plain':{}}, published={}),Seen()
    Ledger(tmp_path).write(rec:=known())
    monkeypatch.setattr(experiments, 'run_recipe', no_training)
    assert run_experiment(one, 'smoke', (0,), results=tmp_path, checkpoints=None, progress=seen)==[rec]
    assert seen.said==[('start',0,1,'plain',0), ('end','plain',True)]

@pytest.mark.parametrize('what', ['fingerprint','split_fingerprint'])
def test_other_data_is_refused(tmp_path, monkeypatch, what):
    Ledger(tmp_path).write(known(**{what:'another'}))
    monkeypatch.setattr(experiments, 'run_recipe', no_training)
    with pytest.raises(ResultError, match='images or the split differ'): run_experiment(EXP, 'smoke', (0,), results=tmp_path, checkpoints=None)
    assert len(Ledger(tmp_path).files())==1

def test_each_record_is_written_at_once(tmp_path, monkeypatch):
    "When the second run breaks, the first is kept, and the next call goes on with the second"
    done = []
    def fake(recipe, paper, table, row, preset, data, *a):
        if row=='SE' and len(done)==1 and not any(r=='broke' for r in done): done.append('broke'); raise RuntimeError('out of memory')
        done.append(row)
        return experiments.RunResult(record(row, recipe.seed, fingerprint=data.fingerprint), None)
    monkeypatch.setattr(experiments, 'run_recipe', fake)
    monkeypatch.setattr(experiments, '_known', lambda records, recipe, data, *a: next((r for r in records if r['recipe_hash']==recipe.hash), None))
    with pytest.raises(RuntimeError): run_experiment(EXP, 'smoke', (0,), results=tmp_path, checkpoints=None)
    assert [r['row'] for r in Ledger(tmp_path).records()]==['plain']
    assert [r['row'] for r in run_experiment(EXP, 'smoke', (0,), results=tmp_path, checkpoints=None)]==['plain','SE','GC']
    assert done==['plain','broke','SE','GC']

# --- the table -----------------------------------------------------------------------------------------
def test_nothing_was_run():
    df = compare(EXP, [], 'smoke', boots=100)
    assert list(df.model)==list(ROWS) and set(df.status)=={'not run'} and (df.runs==0).all() and df.auc.isna().all()
    assert show_table(df).loc['SE','paper']=='0.900' and not show_table(df).isna().any().any()

def test_missing_rows_say_so():
    df = compare(EXP, both(rows=('plain','SE')), 'smoke', boots=100).set_index('model')
    assert df.status['GC']=='not run' and df.runs.tolist()==[2,2,0] and df.status['plain']=='baseline'
    assert df.p_holm['SE']==df.p['SE'] and pd.isna(df.p_holm['GC'])

def test_without_the_baseline_nothing_is_compared():
    df = compare(EXP, both(rows=('SE','GC')), 'smoke', boots=100)
    assert df['diff'].isna().all()

def test_single_seed():
    recs = both(seeds=(0,))
    df = compare(EXP, recs, 'smoke', boots=100).set_index('model')
    assert df.runs.tolist()==[1,1,1] and df.sd.isna().all()
    s = [r['scores']['test'] for r in recs]
    assert df.auc.tolist()==pytest.approx([roc_auc(np.array(o['label']), np.array(o['score'])) for o in s])
    assert '(' not in show_table(df.reset_index())['AUC, mean (SD) of runs'].iloc[0]

def test_a_single_run_decides_nothing():
    exp = dataclasses.replace(EXP, published={'SE':Published(None, 1)})
    recs = [record('plain', s, shift=.2, n=200) for s in (0,1)]+[record('SE', 0, shift=3., n=200)]
    df = compare(exp, recs, 'smoke', boots=200).set_index('model')
    assert df.low['SE']>0 and df.status['SE']=='undecided'

def test_numbers_are_those_of_the_metrics():
    recs = both()
    df = compare(EXP, recs, 'smoke', boots=100).set_index('model')
    S = {r:np.array([o['scores']['test']['score'] for o in recs if o['row']==r]) for r in ROWS}
    t = paired_auc_test(np.array(recs[0]['scores']['test']['label']), S['SE'], S['plain'])
    assert df['diff']['SE']==pytest.approx(t.diff) and df.p['SE']==pytest.approx(t.p)
    assert df.auc['SE']-df.auc['plain']==pytest.approx(df['diff']['SE'])
    assert df.low['SE']<=df['diff']['SE']<=df.high['SE']
    assert (df.p_holm.dropna()>=df.p.dropna()).all()

def test_unequal_numbers_of_seeds():
    df = compare(EXP, both(seeds=(0,1,2), rows=('plain',))+both(seeds=(0,), rows=('SE',)), 'smoke', boots=100).set_index('model')
    assert df.runs[['plain','SE']].tolist()==[3,1] and np.isfinite(df['diff']['SE'])

def test_order_of_records_does_not_matter():
    a,b = (compare(EXP, o, 'smoke', boots=100) for o in (both(), both()[::-1]))
    pd.testing.assert_frame_equal(a, b)

def test_other_presets_and_tables_are_left_out():
    extra = [record('plain', 0, 'laptop', shift=9), dict(record('plain', 1, shift=9), table='u'), dict(record('plain', 1, shift=9), paper='other')]
    pd.testing.assert_frame_equal(compare(EXP, both()+extra, 'smoke', boots=100), compare(EXP, both(), 'smoke', boots=100))

@pytest.mark.parametrize('kw', [dict(n=58), dict(files=[f'x{i}' for i in range(60)]), dict(fingerprint='another'), dict(labels=[1,0]*30)])
def test_different_cases_are_not_compared(kw):
    with pytest.raises(ResultError, match='only runs on the same images'): compare(EXP, both(rows=('plain',))+[record('SE', 0, **kw)], 'smoke', boots=100)

@pytest.mark.parametrize('direction,shift,preset,value,says', [(1,3.,'smoke',.9,'direction only'), (-1,3.,'smoke',.9,'contradicted'), (1,0.,'smoke',.9,'undecided'), (None,3.,'smoke',.9,'not comparable')])
def test_status(direction, shift, preset, value, says):
    exp = dataclasses.replace(EXP, published={'SE':Published(value, direction)})
    base = [record('plain', s, shift=.2, n=200) for s in (0,1)]
    other = [record('SE', s, shift=.2+shift, n=200) for s in (0,1)]
    assert compare(exp, base+other, preset, boots=200).set_index('model').status['SE']==says

def test_interval_of_a_row_alone():
    recs = both()
    df = compare(EXP, recs, 'smoke', boots=100).set_index('model')
    S = np.array([o['scores']['test']['score'] for o in recs if o['row']=='SE'])
    assert (df.auc['SE'], df.auc_low['SE'], df.auc_high['SE'])==pytest.approx(tuple(mean_auc_ci(np.arange(60)%2, S, n=100)))

def test_without_a_test_part_the_held_out_part_is_scored():
    held = [dict(o, scores=dict(valid=o['scores']['test'])) for o in both()]
    assert (scored_part(held), scored_part(both()), scored_part(held[:1]+both()), scored_part([]))==('valid','test','valid','test')
    pd.testing.assert_frame_equal(compare(EXP, held, 'smoke', boots=100), compare(EXP, both(), 'smoke', boots=100))

# --- several tables ------------------------------------------------------------------------------------
def frames(**diffs): return {k:pd.DataFrame(dict(model=['plain','SE'], diff=[np.nan,d], se=[np.nan,se])) for k,(d,se) in diffs.items()}

def test_pooled_difference_is_the_plain_mean():
    df = pool(frames(a=(.04,.03), b=(.02,.04), c=(-.03,.12))).iloc[0]
    assert (df.model, df.tasks, df.better)==('SE',3,2) and df['diff']==pytest.approx(.01)
    assert (df.high-df.low)/2/1.96==pytest.approx(.13/3)

def test_pooling_needs_the_same_model_in_several_tasks_only_where_it_was_run():
    fs = frames(a=(.04,.03), b=(.02,.04))
    fs['b'].loc[1, ['diff','se']] = np.nan
    assert pool(fs).tasks.tolist()==[1]

def test_pooled_p_keeps_its_level():
    "Under no effect, five percent of the pooled tests are below 0.05"
    rng = np.random.default_rng(0)
    ps = [pool(frames(**{str(t):(rng.normal(0, se), se) for t,se in enumerate((.01,.03,.05))})).p[0] for _ in range(400)]
    assert .02<np.mean(np.array(ps)<.05)<.09

# --- several classes, other metrics -----------------------------------------------------------------------
def many(row='plain', seed=0, shift=1., n=60):
    "A record with three classes"
    rng = np.random.default_rng([seed, *row.encode()])
    y = np.arange(n)%3
    z = np.exp(rng.normal(shift*np.eye(3)[y], 1))
    r = record(row, seed, n=n, labels=y)
    r['scores']['test']['score'] = (z/z.sum(1, keepdims=True)).round(6).tolist()
    return r

def threes(): return [many(r, s, shift=1. if r=='plain' else 2.) for r in ROWS for s in (0,1,2)]

@pytest.mark.parametrize('metric', METRICS)
def test_any_metric_of_several_classes(metric):
    df = compare(EXP, threes(), 'smoke', boots=100, metric=metric).set_index('model')
    s = [multiclass_metrics(np.arange(60)%3, many('SE', k, 2.)['scores']['test']['score'])[metric].value for k in (0,1,2)]
    assert df[metric]['SE']==pytest.approx(np.mean(s)) and df.sd['SE']==pytest.approx(np.std(s, ddof=1))
    assert df['diff']['SE']==pytest.approx(df[metric]['SE']-df[metric]['plain']) and df.low['SE']<=df['diff']['SE']<=df.high['SE']
    shown = show_table(compare(EXP, threes(), 'smoke', boots=100, metric=metric))
    assert f"{'AUC' if metric=='auc' else metric}, mean (SD) of runs" in shown and 'p (bootstrap)' in shown

def test_auc_of_two_classes_is_as_before():
    df = compare(EXP, both(), 'smoke', boots=100)
    y = np.arange(60)%2
    S = {r:np.array([record(r, s, shift=1. if r=='plain' else 2.)['scores']['test']['score'] for s in (0,1)]) for r in ROWS}
    g = [f'{i:03d}' for i in range(60)]
    ci,t,b = mean_auc_ci(y, S['SE'], n=100, groups=g),paired_auc_test(y, S['SE'], S['plain'], groups=g),paired_auc_test(y, S['SE'], S['plain'], method='bootstrap', resample_runs=True, n=100, groups=g)
    assert df.loc[1,['auc','auc_low','auc_high']].tolist()==pytest.approx(list(ci)) and df.loc[1,['diff','low','high','p']].tolist()==pytest.approx([t.diff,*b.ci,t.p])
    assert 'p (DeLong)' in show_table(df)

def test_only():
    exp = EXP.only(('GC','plain'))
    assert (exp.baseline, exp.name, exp.published)==('GC', EXP.name, {}) and EXP.only(('plain','SE')).published=={'SE':EXP.published['SE']}
    df = compare(exp, both(), 'smoke', boots=100).set_index('model')
    assert df.status.to_dict()=={'GC':'baseline','plain':'not comparable'}
    with pytest.raises(ArgumentError, match='choose from plain, SE, GC'): EXP.only(('plain','SRM'))

def test_unknown_metric():
    with pytest.raises(ArgumentError, match='choose from auc, sensitivity'): compare(EXP, both(), 'smoke', metric='f1')

# --- what a table may not say --------------------------------------------------------------------------
def test_a_printed_auc_is_no_claim_about_another_metric():
    df = compare(EXP, both(), 'smoke', boots=100, metric='sensitivity').set_index('model')
    assert set(df.status[['SE','GC']])=={'not comparable'} and set(compare(EXP, both(), 'smoke', boots=100).set_index('model').status[['SE','GC']])!={'not comparable'}

def test_an_epoch_chosen_on_the_scored_images_is_refused():
    best = TINY.replace(which_epoch='best', attention='se', seed=0)
    r = record('SE', recipe=best)
    chosen = {**r, 'scores':dict(valid=r['scores']['test'])}
    with pytest.raises(ResultError, match='was chosen on these images'): compare(EXP, [chosen], 'smoke', boots=100)
    with pytest.raises(ResultError, match='has scores of test only'): compare(EXP, [r], 'smoke', 'valid', boots=100)
    assert compare(EXP, [r], 'smoke', boots=100).set_index('model').runs['SE']==1

def test_folds_are_for_masks():
    with pytest.raises(ArgumentError, match="task='segment'"): dataclasses.replace(EXP, folds=dict(smoke=3))

def test_rows_of_one_recipe_have_their_own_records(tmp_path):
    twins = dataclasses.replace(EXP, rows={'a':{}, 'b':dict(attention=None)}, published={})
    def again(): return [r['row'] for r in run_experiment(twins, 'smoke', (0,), results=tmp_path, checkpoints=None, device='cpu')]
    assert again()==again()==['a','b'] and compare(twins, Ledger(tmp_path).records(), 'smoke', boots=100).runs.tolist()==[1,1]
