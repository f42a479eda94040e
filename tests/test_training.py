"Training: frozen recipes, a run that is really killed, precision and layout options, and what is refused"
import json, math, dataclasses, signal, subprocess, sys
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from medattn_nb.core import ArgumentError, ResultError
from medattn_nb.data.datasets import leaks
from medattn_nb.lab import training
from medattn_nb.lab.training import Recipe, checkpoint_path, fit, predict

TINY = Recipe(data='phantom-texture', data_options=dict(n=24, size=32), size=32, epochs=1, batch_size=8, lr=.01)
def run(recipe=TINY, **kw):
    change = {k:kw.pop(k) for k in list(kw) if k in DEFAULTS}
    return fit(recipe.replace(**change), device='cpu', **kw)

# --- recipes are frozen: a record of today must be found by its hash tomorrow -----------------------------
DEFAULTS = dict(data_options=(), split='official', valid_fraction=.2, split_seed=0, size=224, preprocess=('resize',), augment=(), channels=3,
    model='resnet18', attention=None, attention_options=(), where='residual', init='he', keep_identity=True, loss='ce', optimiser='sgd', lr=.05,
    momentum=.9, weight_decay=1e-4, schedule='step', milestones=(.3,.6,.9), gamma=.1, epochs=100, batch_size=64, seed=0, amp=None,
    channels_last=False, compile=False, deterministic=False)

def test_defaults_are_frozen():
    "A field may be added; its default must then be what was done before"
    now = {f.name:f.default for f in dataclasses.fields(Recipe)}
    assert {k:now[k] for k in DEFAULTS}==DEFAULTS and now['data'] is dataclasses.MISSING

@pytest.mark.parametrize('kw,h', [
    (dict(data='covid-ct', size=96, augment=('crop','hflip'), epochs=30, channels_last=True), '5f3485184f77'),
    (dict(data='covid-ct'), 'af9005443fd2'),
    (dict(data='phantom-texture', data_options=dict(size=32, n=120)), '5c758e988e57'),
    (dict(data='phantom-texture', data_options=dict(n=120, size=32)), '5c758e988e57'),
    (dict(data='covid-ct', attention='cbam', attention_options=dict(reduction=8), seed=2), '0f64e9a9ae37'),
    (dict(data='covid-ct', amp='bf16', lr=1e-3, optimiser='adamw', milestones=(.5,)), 'd0f562c7f3b1')])
def test_hashes_are_frozen(kw, h):
    r = Recipe(**kw)
    assert r.hash==h and Recipe.from_dict(r.to_dict())==r

def test_one_number_has_one_name():
    "1 and 1.0 are equal, and so are the recipes; --set weight_decay=0 reads a number with a point, Python may say 0"
    a,b = (Recipe(data='covid-ct', **{k:t(v) for k,v in dict(lr=1, weight_decay=0, momentum=0, gamma=2, power=1).items()}) for t in (int,float))
    assert a==b and a.hash==b.hash and a.to_dict()==b.to_dict() and Recipe.from_dict(json.loads(json.dumps(a.to_dict()))).hash==a.hash

@pytest.mark.parametrize('kw', [dict(epochs=0), dict(size=1.5), dict(batch_size=0), dict(lr=0), dict(gamma=-1), dict(power=0), dict(split='patient'), dict(channels=0),
    dict(loss='mse'), dict(optimiser='lamb'), dict(schedule='cosine'), dict(amp='fp8'), dict(valid_fraction=1), dict(augment=('spin',))])
def test_fields_that_cannot_work(kw):
    with pytest.raises(ArgumentError, match=next(iter(kw))): TINY.replace(**kw)

# --- really killing ------------------------------------------------------------------------------------
SCRIPT = """
import sys, time, torch
from fastai.callback.core import Callback
from medattn_nb.lab.training import Recipe, fit
class Stand(Callback):
    def before_batch(self):
        if self.training and self.epoch==2: print('standing', flush=True); time.sleep(600)
torch.set_num_threads(1)
r = Recipe(data='phantom-texture', data_options=dict(n=120, size=32), size=32, epochs=4, batch_size=32, lr=.02, augment=('hflip','crop'))
f = fit(r, checkpoints=sys.argv[1], device='cpu', on_epoch=lambda o: print('epoch', o['epoch'], flush=True), cbs=[Stand()] if len(sys.argv)>3 else [])
history = [{k:v for k,v in o.items() if k!='seconds'} for o in f.history]
torch.save(dict(model=f.learn.model.state_dict(), history=history, resumed=f.resumed), sys.argv[2])
"""
def start(*args): return subprocess.Popen([sys.executable,'-c',SCRIPT,*map(str, args)], stdout=subprocess.PIPE, text=True)

def test_killed_and_resumed_is_bit_for_bit_uninterrupted(tmp_path):
    "The checkpoint of an epoch is on disk before the epoch is announced, so the kill falls into the next epoch"
    p = start(tmp_path/'b', tmp_path/'never.pt', 'stand')
    try: assert [p.stdout.readline() for _ in range(3)]==['epoch 0\n','epoch 1\n','standing\n']
    finally: p.kill()
    assert p.wait(60)==-signal.SIGKILL and not (tmp_path/'never.pt').exists()
    whole = start(tmp_path/'a', tmp_path/'whole.pt')
    p = start(tmp_path/'b', tmp_path/'again.pt')
    said = p.communicate(timeout=300)[0].split('\n')
    assert whole.wait(300)==0 and p.returncode==0
    a,b = (torch.load(tmp_path/f'{o}.pt', weights_only=True) for o in ('whole','again'))
    assert b['resumed']==2 and said[0]=='epoch 2' and a['resumed']==0
    assert a['model'].keys()==b['model'].keys() and all(torch.equal(v, b['model'][k]) for k,v in a['model'].items())
    assert a['history']==b['history'] and len(a['history'])==4

@pytest.mark.parametrize('kw', [dict(schedule='onecycle'), dict(schedule='poly', optimiser='amsgrad', lr=1e-3)], ids=str)
def test_schedules_by_batch_resume_exactly(kw, tmp_path):
    class Killed(Exception): pass
    def kill(row): raise Killed('now')
    kw = dict(kw, epochs=3, batch_size=8)
    whole = run(**kw)
    with pytest.raises(Killed): run(**kw, checkpoints=tmp_path, on_epoch=kill)
    again = run(**kw, checkpoints=tmp_path)
    assert again.resumed==1 and [o['lr'] for o in again.history]==[o['lr'] for o in whole.history]
    assert all(torch.equal(v, again.learn.model.state_dict()[k]) for k,v in whole.learn.model.state_dict().items())

def test_a_rate_is_set_for_every_batch():
    "The rates that the optimiser really used are those of `lr_at`, batch by batch"
    class Seen(Callback):
        order = 70
        def __init__(self): self.lr = []
        def after_batch(self): self.lr += [self.opt.hypers[-1]['lr']] if self.training else []
    s = Seen()
    f = run(schedule='onecycle', epochs=2, batch_size=8, cbs=[s])
    n = len(f.learn.dls.train); r = TINY.replace(schedule='onecycle', epochs=2, batch_size=8)
    assert n>1 and np.allclose(s.lr, [r.lr_at(i/n) for i in range(2*n)], rtol=1e-12, atol=0) and np.argmax(s.lr)==round(n/2)

def test_a_finished_run_is_only_loaded(tmp_path):
    a = run(checkpoints=tmp_path)
    b = run(checkpoints=tmp_path, on_epoch=lambda o: pytest.fail('trained again'))
    assert b.resumed==1 and a.history==b.history and (predict(a.learn)==predict(b.learn)).all()

# --- options -------------------------------------------------------------------------------------------
@pytest.mark.parametrize('kw', [dict(amp='bf16'), dict(channels_last=True), dict(channels=1), dict(attention='cbam', attention_options=dict(reduction=8)),
    dict(optimiser='adamw', lr=1e-3), dict(optimiser='amsgrad', lr=1e-3), dict(schedule='constant'), dict(schedule='onecycle'), dict(schedule='poly'), dict(augment=('hflip','vflip','crop')), dict(amp='bf16', channels_last=True, attention='gc')], ids=str)
def test_options_train(kw):
    f = run(**kw)
    p = predict(f.learn, 'test')
    assert p.shape==(4,2) and abs(p.sum(1)-1).max()<1e-4 and len(f.history)==1
    assert all(o.dtype==torch.float32 for o in f.learn.model.parameters())

def test_layout_changes_no_number_by_much():
    a,b = (run(channels_last=o) for o in (False,True))
    assert abs(predict(a.learn)-predict(b.learn)).max()<.05

def test_same_seed_same_weights_other_seed_other():
    a,b,c = (run(seed=s).learn.model.state_dict() for s in (1,1,2))
    assert all(torch.equal(v, b[k]) for k,v in a.items()) and not torch.equal(a['fc.weight'], c['fc.weight'])

def test_single_image_last_batch():
    f = run(data_options=dict(n=24, size=64), size=64, batch_size=15)
    assert len(f.learn.dls.train)==2 and predict(f.learn, 'train').shape==(16,2)

def test_scores_are_in_the_order_of_the_table():
    r = TINY.replace(data_options=dict(n=48, size=32), batch_size=6)
    f,data = run(r),r.load()
    assert (torch.cat([y for _,y in f.learn.dls.valid]).numpy()==data.labels[data.items.split=='valid']).all()

# --- splits --------------------------------------------------------------------------------------------
GROUPED = TINY.replace(data_options=dict(n=96, size=16, groups=4), split='grouped')
def test_grouped_never_crosses():
    for s in range(5):
        d = GROUPED.replace(split_seed=s).load()
        assert not len(leaks(d)) and set(d.items.split)=={'train','valid'}
        assert d.items.groupby('group').split.nunique().max()==1

def test_random_crosses(): assert len(leaks(GROUPED.replace(split='random').load()))

def test_the_seed_of_the_run_does_not_move_the_split():
    a,b,c = (GROUPED.replace(**kw).load() for kw in (dict(seed=0), dict(seed=1), dict(split_seed=1)))
    assert a.split_fingerprint==b.split_fingerprint!=c.split_fingerprint and a.fingerprint==c.fingerprint

# --- refused -------------------------------------------------------------------------------------------
def test_damaged_checkpoint(tmp_path):
    for junk in (b'', b'no checkpoint', b'PK\3\4'+bytes(100)):
        checkpoint_path(TINY, tmp_path).write_bytes(junk)
        with pytest.raises(ResultError, match=TINY.hash): run(checkpoints=tmp_path)

def test_checkpoint_of_another_recipe(tmp_path):
    run(checkpoints=tmp_path)
    other = TINY.replace(lr=.02)
    checkpoint_path(TINY, tmp_path).rename(checkpoint_path(other, tmp_path))
    with pytest.raises(ResultError, match='another recipe'): run(other, checkpoints=tmp_path)

def test_fp16_needs_cuda():
    with pytest.raises(ArgumentError, match='needs CUDA'): run(amp='fp16')

def test_loss_that_is_no_number():
    with pytest.raises(ResultError, match='lower lr'): run(lr=1e30, epochs=3, batch_size=4)

def test_predict_names_the_splits():
    f = fit(GROUPED.replace(epochs=1, size=32, data_options=dict(n=24, size=32)), device='cpu')
    with pytest.raises(ArgumentError, match='train, valid'): predict(f.learn, 'test')

@pytest.mark.parametrize('data,channels,kw', [('phantom-brain',4,dict(n=72)), ('phantom-stroke',4,dict(n=160)), ('phantom-fundus',3,dict(n=36)), ('phantom-chest',1,dict(n=36))])
def test_pictures_of_every_kind_train(data, channels, kw):
    "Floats of four modalities stay floats, without limits on their values; bytes become 0 to 1"
    r = Recipe(data=data, data_options=dict(size=64, **kw), channels=channels, size=64, epochs=1, batch_size=12, lr=.01, augment=('hflip','noise'))
    f = fit(r, device='cpu')
    x,_ = f.learn.dls.train.one_batch()
    assert x.shape[1:]==(channels,64,64) and math.isfinite(f.history[0]["train_loss"])
    assert predict(f.learn, 'valid').shape[1]==2+2*(data=='phantom-fundus')
    raw = r.load().tensors(64, ('resize',), channels)
    assert raw.dtype==(torch.float32 if channels==4 else torch.uint8) and (channels!=4 or raw.min()<-1)

def test_a_set_without_a_validation_part():
    "It is drawn from the training part by group; the test part stays as it came"
    r = Recipe(data='phantom-texture', data_options=dict(n=90, groups=3, size=16, fractions=(.7,0,.3)), size=16, valid_fraction=.3)
    d = r.load()
    assert {'train','valid','test'}==set(d.items.split) and not len(leaks(d)) and (d.items.split=='test').sum()==27
    assert (r.load().items.split==d.items.split).all() and (r.replace(split_seed=1).load().items.split!=d.items.split).any()
    with pytest.raises(ArgumentError, match='no official train part'): Recipe(data='phantom-texture', data_options=dict(n=20, fractions=(0,0,1)), size=16).load()

def test_images_stay_where_they_are_on_the_cpu():
    x = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    assert training._held(x, torch.device('cpu')) is x

@pytest.mark.parametrize('free,moved', [(96,False),(191,False),(192,True)])
def test_images_go_to_the_gpu_if_it_has_room_twice(monkeypatch, free, moved):
    class Images:
        nbytes,device = 96,'cpu'
        def to(self, device): self.device = device; return self
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda d: (free, 10**9))
    assert training._held(Images(), torch.device('cuda')).device==(torch.device('cuda') if moved else 'cpu')

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
def test_data_set_lies_on_the_gpu():
    r = Recipe(data='phantom-texture', data_options=dict(n=24, size=16), size=16, epochs=1, batch_size=8)
    dl = r.dataloaders(r.load(), torch.device('cuda')).train
    assert dl.x.is_cuda and dl.y.is_cuda and all(o.is_cuda for o in dl.one_batch())

def test_auc_of_several_classes_while_training():
    "The AUC in the history of more than two classes is the macro AUC of the predicted probabilities"
    from medattn_nb.metrics import macro_auc
    f = fit(Recipe(data='phantom-fundus', data_options=dict(n=60, size=32), size=32, epochs=1, batch_size=16, lr=1e-3), device='cpu')
    assert f.history[0]['auc']==pytest.approx(float(macro_auc(f.learn.dls.valid.y.numpy(), predict(f.learn, 'valid'))), abs=1e-6)

def test_papers_bring_their_backbones():
    "A recipe may name a network that a paper defines, whoever has imported that paper"
    code = "from medattn_nb.lab.training import Recipe; print(type(Recipe(data='phantom-texture', data_options=dict(n=24, size=32), size=32, model='resnet18-dual', attention='nam', where='e1').learner(device='cpu').model).__name__)"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()[-1]=='DualBranch'

def test_pretrained_weights_are_a_field():
    with pytest.raises(ArgumentError, match='imagenet'): Recipe(data='phantom-texture', weights='my.pth')
    assert Recipe(data='phantom-texture', weights='imagenet').hash!=Recipe(data='phantom-texture').hash

@pytest.mark.parametrize('stop', [None,1,2])
def test_best_epoch(tmp_path, stop):
    "The weights of the best epoch are what is left, also after an interruption, and what the checkpoint holds"
    r = TINY.replace(epochs=4, lr=.05, which_epoch='best', data_options=dict(n=60, size=32))
    seen = {}
    class Keep(training.Callback):
        order = 59
        def after_epoch(self): seen[self.epoch] = {k:v.clone() for k,v in self.model.state_dict().items()}
    class Stop(training.Callback):
        def before_batch(self):
            if self.training and self.epoch==stop: raise KeyboardInterrupt
    if stop is not None:
        with pytest.raises(KeyboardInterrupt): fit(r, device='cpu', checkpoints=tmp_path, cbs=[Keep(),Stop()])
    f = fit(r, device='cpu', checkpoints=tmp_path, cbs=[Keep()])
    aucs = [o['auc'] for o in f.history]
    want,ck = seen[aucs.index(max(aucs))],torch.load(checkpoint_path(r, tmp_path), weights_only=True)
    assert all(torch.equal(v, want[k]) and torch.equal(ck['model'][k], v) for k,v in f.learn.model.state_dict().items()) and ck['best'] is None
    again = fit(r, device='cpu', checkpoints=tmp_path)
    assert again.resumed==4 and all(torch.equal(v, want[k]) for k,v in again.learn.model.state_dict().items())
    assert fit(r.replace(which_epoch='last'), device='cpu').history[-1]['auc']==aucs[-1]

# --- fused steps --------------------------------------------------------------------------------------
def steps(opt, weights, seed=0, n=3):
    g = torch.Generator().manual_seed(seed)
    for _ in range(n):
        for w in weights: w.grad = torch.randn(w.shape, generator=g)
        opt.step()

def weights(**kw): g = torch.Generator().manual_seed(9); return [torch.nn.Parameter(torch.randn(s, generator=g).to(**kw)) for s in ((8,4,3,3),(8,),(5,8,1,1))]

@pytest.mark.parametrize('name,kw', [('adam',{}), ('adamw',{}), ('amsgrad',dict(amsgrad=True))])
@pytest.mark.parametrize('channels_last', [True,False])
def test_fused_steps_are_the_steps_of_torch(name, kw, channels_last):
    r = TINY.replace(optimiser=name, lr=.01, weight_decay=.1, momentum=.8)
    a,b = weights(),weights()
    if channels_last: a = [torch.nn.Parameter(w.detach().contiguous(memory_format=torch.channels_last)) if w.ndim==4 else w for w in a]
    opt = r.opt_func(a); assert all(g['fused'] for g in opt.opt.param_groups)
    steps(opt, a); steps((torch.optim.AdamW if name=='adamw' else torch.optim.Adam)(b, lr=.01, weight_decay=.1, betas=(.8,.999), foreach=False, **kw), b)
    for x,y in zip(a, b): torch.testing.assert_close(x.detach(), y.detach(), rtol=0, atol=1e-6)

def test_fused_state_goes_through_a_file(tmp_path):
    r = TINY.replace(optimiser='amsgrad', lr=.01); a,b = weights(),weights()
    opt = r.opt_func(a); steps(opt, a); torch.save(opt.opt.state_dict(), tmp_path/'o.pth')
    for x,y in zip(b, a): x.data.copy_(y.data)
    again = r.opt_func(b); again.opt.load_state_dict(torch.load(tmp_path/'o.pth', weights_only=True))
    steps(opt, a, 1); steps(again, b, 1)
    assert all(torch.equal(x, y) for x,y in zip(a, b))

def test_sgd_is_left_alone(): assert not any(g.get('fused') for g in TINY.opt_func(weights()).opt.param_groups)
def test_other_devices_are_not_fused():
    w = [torch.nn.Parameter(torch.empty(2, device='meta'))]; assert not any(g.get('fused') for g in TINY.replace(optimiser='adam').opt_func(w).opt.param_groups)

# --- what must not outlive a run ---------------------------------------------------------------------
@pytest.mark.parametrize('error', [ResultError, KeyboardInterrupt])
def test_half_precision_ends_with_the_run(error):
    class Break(Callback):
        order = -10
        def after_pred(self):
            if error is KeyboardInterrupt: raise KeyboardInterrupt
            self.learn.pred = self.pred*math.nan
    with pytest.raises(error): run(amp='bf16', cbs=[Break()])
    assert not torch.is_autocast_enabled('cpu') and (torch.randn(4,4)@torch.randn(4,4)).dtype==torch.float32

def test_outputs_that_carry_weights_leave_fp16_as_floats():
    "fastai's callback takes the weight .4 for a tensor; CUDA is not needed to see ours does not"
    cb = training.HalfPrecision()
    cb.learn = type('L', (), dict(pred=(torch.ones(1, dtype=torch.float16),(.4,torch.ones(1, dtype=torch.float16)))))()
    cb.after_pred()
    z,(w,aux) = cb.learn.pred
    assert z.dtype==aux.dtype==torch.float32 and w==.4

def test_a_checkpoint_belongs_to_its_images_and_its_split(tmp_path):
    data = TINY.load()
    fit(TINY, data, checkpoints=tmp_path, device='cpu')
    assert fit(TINY, data, checkpoints=tmp_path, device='cpu').resumed==TINY.epochs
    for other in (TINY.replace(data_options=dict(n=24, size=32, seed=1)).load(), TINY.replace(split='random', split_seed=3).load()):
        with pytest.raises(ResultError, match='other images or another split'): fit(TINY, other, checkpoints=tmp_path, device='cpu')

def test_lists_among_options_are_tuples():
    r = TINY.replace(data_options=dict(n=24, size=32, fractions=[.5,.25,.25]), attention_options=dict(rates=[2,4]))
    assert Recipe.from_dict(r.to_dict())==r and hash(r)==hash(Recipe.from_dict(r.to_dict())) and dict(r.attention_options)['rates']==(2,4)
