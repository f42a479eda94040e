"The command line: help, exit codes, what is printed, and a run that is really stopped with Ctrl-C"
import json, os, re, shlex, signal, subprocess, sys, time
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from medattn_nb.lab import cli
from medattn_nb.lab.cli import main

TOY = """
from medattn_nb.lab.experiments import Experiment
from medattn_nb.lab.training import Recipe
tiny = Recipe(data='phantom-texture', data_options=dict(n=60, size=32), size=32, epochs=1, batch_size=16, lr=.01)
def table(name, **kw): return Experiment('toy', name, 'A toy', {'plain':{}, 'SE':dict(attention='se')}, presets=dict(smoke=tiny, **kw), seeds=dict(smoke=(0,1), **{k:(0,) for k in kw}), published={})
EXPERIMENTS = {'a':table('a'), 'b':table('b', laptop=tiny.replace(epochs=2), paper=tiny.replace(data='covid-ct', data_options={}))}
"""

@pytest.fixture(scope='module')
def toys(tmp_path_factory):
    "A folder that brings the paper 'toy': on the path of a new process, and in this one"
    d = tmp_path_factory.mktemp('toys')
    (d/'papers').mkdir()
    (d/'papers/toy.py').write_text(TOY)
    (d/'sitecustomize.py').write_text(f'import medattn_nb.papers as p\np.__path__.append({str(d/"papers")!r})\n')
    import medattn_nb.papers as p
    p.__path__.append(str(d/'papers'))
    yield d
    p.__path__.remove(str(d/'papers'))
    sys.modules.pop('medattn_nb.papers.toy', None)

@pytest.fixture
def sh(toys, tmp_path, monkeypatch, capsys):
    "Call `main` in an empty folder: (exit code, standard output, standard error)"
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('MEDATTN_DATA', raising=False)
    def f(line):
        code = main(shlex.split(line))
        return (code, *capsys.readouterr())
    return f

def env(toys=None):
    e = {k:v for k,v in os.environ.items() if k not in ('MEDATTN_DATA','MEDATTN_DEBUG')}
    return {**e, **({'PYTHONPATH':str(toys)} if toys else {}), 'OMP_NUM_THREADS':'1'}

def process(line, cwd, toys=None, **kw):
    return subprocess.Popen([sys.executable,'-m','medattn_nb.lab.cli',*shlex.split(line)], cwd=cwd, env=env(toys), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)

# --- help ----------------------------------------------------------------------------------------------
COMMANDS = 'run','demo','table','data list','data check','data get','data frames','data masks','bench','complexity','predict','doctor'

def test_help_imports_nothing_heavy():
    code = "import sys; from medattn_nb.lab.cli import main; c = main(['--help']); sys.exit(c or bool({'torch','numpy','pandas','fastai','tqdm'} & set(sys.modules)))"
    r = subprocess.run([sys.executable,'-c',code], capture_output=True, text=True)
    assert r.returncode==0, 'medattn --help imports what it does not need'
    assert all(o.split()[0] in r.stdout for o in COMMANDS) and '130 stopped with Ctrl-C' in r.stdout

def test_help_is_fast(tmp_path):
    "Processor time, which a busy machine does not stretch"
    pytest.importorskip('resource')
    p = process('--help', tmp_path); p.stdout.read()
    _,status,used = os.wait4(p.pid, 0); p.returncode = os.waitstatus_to_exitcode(status)
    assert p.returncode==0 and used.ru_utime+used.ru_stime<1.5

@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_has_purpose_and_example(sh, command):
    code,out,err = sh(f'{command} --help')
    assert code==0 and not err and f'example: medattn {command}' in out
    for o in re.findall(r'^  (--?[\w-]+).*$', out, re.M): assert re.search(rf'{o}\b.*\n? +\S', out)

def test_examples_parse():
    for f,example,_ in cli._commands.values(): assert cli._parser().parse_args(shlex.split(example)[1:]).command is f

def test_version_and_nothing(sh):
    import medattn_nb
    assert sh('--version')==(0, f'medattn {medattn_nb.__version__}\n', '')
    assert sh('')[0]==0

# --- mistakes ------------------------------------------------------------------------------------------
@pytest.mark.parametrize('line,says', [
    ('walk', 'choose from'), ('run', 'PAPER[/TABLE]'), ('run toy --preset tiny', '--preset'), ('run toy --seeds 0,x', 'write them as 0,1,2'),
    ('run toy --seed 0', 'unrecognized'), ('data', 'COMMAND'), ('data chekc x', 'choose from'), ('table toy/a --format pdf', '--format'),
    ('run nope', 'name one of the papers'), ('run toy/c', 'toy/a, toy/b'), ('table toy', 'toy/a, toy/b'), ('run toy/a --preset paper', 'toy/a has smoke'),
    ('run toy/a --preset smoke --set epoch=1', 'epochs'), ('run toy/a --preset smoke --set epochs', 'field=value'), ('run toy/a --preset smoke --set epochs=x', 'a value like 100'),
    ('run toy/a --preset smoke --set epochs=0', 'at least 1'), ('run toy/a --preset smoke --set seed=1', '--seeds'), ('run toy/a --preset smoke --set attention=gc', 'differ'),
    ('run toy/a --preset smoke --device tpu', 'device')])
def test_bad_arguments_take_one_line(sh, line, says):
    code,out,err = sh(line)
    assert code==2 and len(err.splitlines())==1 and err.startswith('medattn') and says in err and 'Traceback' not in err

@pytest.mark.parametrize('line,says', [('run toy/b --preset paper', 'covid-ct'), ('run toy/b --preset paper --data-root nowhere', 'covid-ct')])
def test_missing_data_take_one_line(sh, line, says):
    code,out,err = sh(line)
    assert code==1 and len(err.splitlines())==1 and says in err

def test_debug_keeps_the_traceback(sh, monkeypatch):
    monkeypatch.setenv('MEDATTN_DEBUG', '1')
    with pytest.raises(ValueError): sh('run nope')

def test_a_process_exits_with_the_code(tmp_path):
    p = process('run nope', tmp_path)
    out,err = p.communicate(timeout=300)
    assert p.returncode==2 and out=='' and len(err.splitlines())==1

def test_broken_pipe(tmp_path):
    p = process('data list', tmp_path)
    p.stdout.close()
    assert p.stderr.read()=='' and p.wait(300)==141

# --- run and table -------------------------------------------------------------------------------------
def test_run_and_table(sh, tmp_path):
    code,out,err = sh('table toy/a --preset smoke')
    assert code==0 and out.count('not run')==2 and 'medattn run toy/a --preset smoke' in err
    code,out,err = sh('run toy/a --preset smoke --seeds 0')
    assert code==0 and out.count('trained')==2 and not re.search(r'[\r\x1b]', out+err) and 'baseline' in out
    assert len(list(tmp_path.glob('runs/results/toy/a/*.json')))==2 and not (tmp_path/'results').exists()
    code,out,err = sh('run toy/a --preset smoke --seeds 0')
    assert code==0 and out.count('from the ledger')==2 and 'trained' not in out
    lines = out.strip().split('\n\n')[-2]
    assert out.count('.pth')==2 and all((tmp_path/o).is_file() for o in re.findall(r'\S+\.pth', out))
    assert sh('table toy/a --preset smoke')[1].strip()==lines
    assert sh('table toy/a --preset smoke --format markdown')[1].startswith('| model |')
    head,*rows = sh('table toy/a --preset smoke --format csv')[1].splitlines()
    assert head.startswith('model,runs,auc') and len(rows)==2
    assert sh('table toy/a --preset smoke --split valid')[0]==0

def test_table_shows_records_that_came_with_the_project(sh, tmp_path):
    "Synthetic runs in results are shown; a run that is in both folders counts once, and --results looks into one"
    sh('run toy/a --preset smoke --seeds 0,1')
    own = sh('table toy/a --preset smoke --format csv')[1]
    (tmp_path/'runs/results').rename(tmp_path/'results')
    assert sh('table toy/a --preset smoke --format csv')[1]==own
    assert sh('table toy/a --preset smoke --results elsewhere')[1].count('not run')==2
    for o in (tmp_path/'results').rglob('*seed0*.json'):
        there = tmp_path/'runs'/o.relative_to(tmp_path); there.parent.mkdir(parents=True, exist_ok=True); there.write_bytes(o.read_bytes())
    assert sh('table toy/a --preset smoke --format csv')[1]==own

@pytest.mark.parametrize('field,value', [('deterministic',True), ('compile',False), ('epochs',3), ('lr',.02), ('size',(24,32)), ('size',48), ('augment',()), ('augment',('hflip','vflip')), ('milestones',(.6,.85)),
    ('data_options',dict(n=60, size=32, rule='pair')), ('loss_options',{}), ('loss_options',dict(batch=True, average='both')), ('weights',None), ('amp','bf16'), ('masks',('kidney',))])
def test_settings_that_a_report_prints_can_be_read_back(field, value):
    from medattn_nb.lab.report import _setting
    from medattn_nb.lab.training import Recipe
    base = dict(data='phantom-renal', task='segment', mode='multilabel', loss='gbl')
    r = Recipe(**base, **{field:value})
    text = f'{field}={_setting(r.to_dict()[field])}'
    assert Recipe(**base, **cli._changes([shlex.split(shlex.quote(text))[0]]))==r

def test_runs_with_other_fields_are_kept_apart(sh):
    sh('run toy/a --preset smoke --seeds 0 --set lr=.02')
    code,out,err = sh('table toy/a --preset smoke')
    assert out.count('not run')==2
    assert 'not run' not in sh('table toy/a --preset smoke --set lr=.02')[1]
    sh('run toy/a --preset smoke --seeds 0')
    code,out,err = sh('table toy/a --preset smoke')
    assert [re.search(r'to \d\.\d{3} +(\d+) ', o)[1] for o in out.splitlines()[1:]]==['1','1'] and '2 records of other presets or recipes' in err

def test_a_paper_runs_all_its_tables(sh, tmp_path):
    code,out,err = sh('run toy --preset smoke --seeds 3 --results r --checkpoints c')
    assert code==0 and {o.parent.name for o in tmp_path.glob('r/toy/*/*.json')}=={'a','b'} and list(tmp_path.glob('c/*.pth')) and not (tmp_path/'runs').exists()

def test_a_changed_record_takes_one_line(sh, tmp_path):
    sh('run toy/a --preset smoke --seeds 0')
    p = next(tmp_path.glob('runs/results/toy/a/*.json'))
    p.write_text(json.dumps({**json.loads(p.read_text()), 'seconds':0}))
    code,out,err = sh('table toy/a --preset smoke')
    assert code==1 and len(err.splitlines())==1 and p.name in err

def test_stopped_and_resumed(toys, tmp_path):
    "Ctrl-C while the first run trains, then the very command that was printed"
    main = 'import signal,sys; signal.signal(signal.SIGINT, signal.default_int_handler); from medattn_nb.lab.cli import main; sys.exit(main())' # where it was ignored, as in a job of a shell
    p = subprocess.Popen([sys.executable,'-c',main,*'run toy/a --preset smoke --seeds 0 --set epochs=30'.split()], cwd=tmp_path, env=env(toys), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic()+300
    while not list(tmp_path.glob('runs/checkpoints/*.pth')) and p.poll() is None and time.monotonic()<until: time.sleep(.02)
    p.send_signal(signal.SIGINT)
    out,err = p.communicate(timeout=300)
    assert p.returncode==130 and 'Traceback' not in err, err
    line, = [o for o in err.splitlines() if 'stopped' in o]
    assert 'finished runs are kept' in line
    r = subprocess.run(shlex.split(line.split('with: ')[1]), cwd=tmp_path, env=env(toys), capture_output=True, text=True, timeout=600)
    assert r.returncode==0, r.stderr
    assert 'resumed after epoch' in r.stdout and 'baseline' in r.stdout
    recs = [json.loads(o.read_text()) for o in tmp_path.glob('runs/results/toy/a/*.json')]
    assert sorted(o['row'] for o in recs)==['SE','plain'] and all(len(o['history'])==30 for o in recs)

def test_the_line_for_ctrl_c_is_the_command(sh, monkeypatch):
    def stop(a): raise KeyboardInterrupt
    monkeypatch.setitem(cli._commands, 'demo', (stop, *cli._commands['demo'][1:]))
    stop.__doc__ = 'Stop'
    code,out,err = sh("demo --fresh --preset smoke --out 'a b'")
    assert code==130 and len(err.splitlines())==1 and err.rstrip().endswith("demo --preset smoke --out 'a b'")

# --- data ----------------------------------------------------------------------------------------------
def picture(p, n=16): Image.fromarray(np.full((n,n), 90, np.uint8)).save(p)

def test_data_check_lists_every_bad_file(sh, tmp_path):
    d = tmp_path/'mine'; d.mkdir()
    for o in 'abc': picture(d/f'{o}.png')
    picture(d/'mask.png', 8); (d/'b.png').write_text('no picture')
    (d/'manifest.csv').write_text('file,label,mask\na.png,sick,\nb.png,sick,\nc.png,well,mask.png\nd.png,well,\n')
    code,out,err = sh('data check mine')
    told = out[out.index('Problems (3)'):].splitlines()[1:4]
    assert code==1 and [o.split(':')[0].strip() for o in told]==['b.png','mask.png','d.png'] and out.endswith('\n4 images checked, 3 problems, 1 warning\n')
    (d/'manifest.csv').write_text('file,label,split\na.png,sick,train\nc.png,well,test\n')
    code,out,err = sh('data check mine')
    assert (code,err)==(0,'') and out.endswith('\n2 images checked, no problems, 2 warnings\n')
    assert 'identical in another part, counted on the later side: 1 in test' in out and 'carry two classes: 1, such as a.png (sick) and c.png (well)' in out
    assert 'mine' in sh(f'data list --data-root .')[1]

def test_data_check_by_name(sh, tmp_path):
    code,out,err = sh('data check covid-ct .')
    assert code==1 and 'looked for' in out and 'Clone github.com/UCSD-AI4H/COVID-CT' in out
    code,out,err = sh('data check phantom-texture --option n=12 --option size=32')
    assert (code,err)==(0,'') and 'lesion' in out and out.endswith('12 images checked, no problems, no warnings\n')
    code,out,err = sh('data check phantom-texture --option sise=32')
    assert code==2 and 'options of phantom-texture' in err

@pytest.mark.parametrize('line,says', [('data check phantom-texture --option size', '--option: got size; write key=value'), ('data check phantom-texture --option n=many', 'n: got many; use a number'),
    ("data check mine --option 'group=('", 'regular expression'), ('data frames mine mine.txt', 'mine.txt: File exists'), ("data frames videos out --patient '('", 'regular expression')])
def test_wrong_options_of_data_take_one_line(sh, tmp_path, line, says):
    (tmp_path/'mine.txt').write_text('')
    for o in ('mine/a','mine/b','videos'): (tmp_path/o).mkdir(parents=True); picture(tmp_path/o/'x.png')
    code,out,err = sh(line)
    assert code in (1,2) and says in err and err.count('\n')==1

def test_data_check_under_the_data_root(sh, tmp_path, monkeypatch):
    "What `data list` says that loads by its name is checked by its name"
    for o in 'ab': (tmp_path/'sets/mine'/o).mkdir(parents=True); picture(tmp_path/f'sets/mine/{o}/x.png', 16 if o=='a' else 20)
    monkeypatch.setenv('MEDATTN_DATA', str(tmp_path/'sets'))
    code,out,err = sh('data check mine')
    assert code==0 and '2 images checked' in out

def test_stopping_a_check_speaks_of_no_runs():
    said = cli._stopped(['data','check','mine'])
    assert said.startswith('medattn: stopped; to start again: ') and said.endswith('data check mine') and 'finished runs' not in said

def test_data_check_of_nothing(sh):
    code,out,err = sh('data check nowhere')
    assert code==1 and 'nowhere' in out

def test_data_card(sh):
    code,out,err = sh('data list covid-ct')
    assert code==0 and all(re.search(f'^{o} +[^ ]', out, re.M) for o in ('title','task','classes','licence','citation','how to get','notes')) and max(map(len, out.splitlines()))<=100
    code,out,err = sh('data list covid-cd')
    assert code==2 and 'choose one of' in err and 'covid-ct' in err

def test_data_list(sh):
    code,out,err = sh('data list')
    assert code==0 and re.search(r'^phantom-texture .*synthetic$', out, re.M) and re.search(r'^covid-ct .*no$', out, re.M)

def test_data_get_says_what_can_be_had(sh):
    code,out,err = sh('data get')
    assert code==0 and re.search(r'^idrid-fundus +2 +0\.7 +SHA-256$', out, re.M) and 'brats-2018' not in out
    code,out,err = sh('data get messidor --data-root .')
    assert code==1 and 'without a plain download' in err and 'Base11' in err and len(err.splitlines())==1
    code,out,err = sh('data get idrid-fundus')
    assert code==2 and '--data-root' in err and 'MEDATTN_DATA' in err
    code,out,err = sh('data get isic-2018-task2 --data-root .')
    assert code==1 and 'trust' in err
    code,out,err = sh('data get nothing --data-root .')
    assert code==2 and 'choose one of' in err

def test_data_get_hands_on(sh, monkeypatch, tmp_path):
    from medattn_nb.data import download
    got = {}
    monkeypatch.setattr(download, 'get_data', lambda name,root,**kw: got.update(kw, name=name, root=root) or tmp_path/name)
    code,out,err = sh('data get idrid-fundus --data-root d --trust --sha256 abc')
    assert code==0 and got==dict(name='idrid-fundus', root='d', trust=True, sha256='abc') and 'terms: CC BY 4.0' in out

def test_video_to_data_set(sh, tmp_path):
    "A clip to frames to masks to a set that loads, by the command alone"
    import cv2, json
    from medattn_nb.data.datasets import from_manifest
    (tmp_path/'videos/p1').mkdir(parents=True)
    w = cv2.VideoWriter(str(tmp_path/'videos/p1/clip.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 10, (64,48))
    for i in range(10):
        a = np.random.default_rng(i).integers(0, 60, (48,64,3), dtype=np.uint8); a[10:30,10+i:30+i] = 200; w.write(a)
    w.release()
    (tmp_path/'videos/p1/broken.avi').write_bytes(b'no video')
    code,out,err = sh('data frames videos frames --fps 5')
    assert code==1 and 'broken.avi' in out and '5 of 5 frames kept, 1 patients' in out
    first = sorted((tmp_path/'frames/frames').rglob('*.png'))[0]
    first.with_suffix('.json').write_text(json.dumps(dict(version='5.0.1', flags={}, imagePath=first.name, imageData=None, imageHeight=48, imageWidth=64,
        shapes=[dict(label='kidney', shape_type='polygon', points=[[10,10],[30,10],[30,30],[10,30]])])))
    code,out,err = sh('data masks frames --labels kidney')
    assert code==0 and '1 of 5 frames have masks' in out
    d = from_manifest(tmp_path/'frames', masks=('kidney',))
    assert len(d)==5 and [d.mask(i) is not None for i in range(5)]==[True]+[False]*4 and abs(d.mask(0).sum()-400)<50

# --- doctor --------------------------------------------------------------------------------------------
def test_doctor(sh):
    code,out,err = sh('doctor')
    assert code==0 and 'All that is required is here' in out
    for o in ('python','torch','fastai','fast-slic','quarto','CPU cores','disk','covid-ct'): assert o in out
    assert all('to add it: ' in o for o in out.splitlines() if re.match(r'  \S+ +missing', o))

def test_doctor_finds_what_is_missing_or_old(sh, monkeypatch):
    monkeypatch.setattr(cli, '_version', lambda o: {'torch':'2.5.1','fastai':None}.get(o, '99'))
    code,out,err = sh('doctor')
    assert code==1 and 'Problem: torch: 2.5.1 is too old: 2.6 or newer is needed' in out and 'Problem: fastai: missing' in out

def test_doctor_says_when_the_import_fails(sh, monkeypatch):
    monkeypatch.setattr(cli, '_works', lambda: 'ImportError: libcudart.so')
    code,out,err = sh('doctor')
    assert code==1 and 'Problem: ImportError: libcudart.so' in out

# --- demo ----------------------------------------------------------------------------------------------
def test_the_demo_is_what_the_readme_says():
    "Six small networks, twice each, on synthetic images"
    exp,a = cli._find('selfattention/phantom')[0],cli._parser().parse_args(['demo'])
    assert len(exp.rows)==6 and len(exp.recipes(a.preset, a.seeds))==12 and exp.presets[a.preset].load().info.synthetic

def test_demo(sh, tmp_path, monkeypatch):
    "The demo's own steps, on the toy table and without drawing the report"
    exp, = cli._find('toy/b')
    monkeypatch.setattr(cli, '_find', lambda name: {'selfattention/phantom':[exp]}[name])
    monkeypatch.setattr(cli, '_report', lambda exp, records, a, path, checkpoints: print(f'Report: {path}'))
    code,out,err = sh('demo --seeds 0')
    assert code==0 and out.count('trained')==2 and out.splitlines()[-1]=='Report: report.html' and list(tmp_path.glob('runs/demo/checkpoints/*.pth'))
    code,out,err = sh('demo --seeds 0 --out elsewhere')
    assert out.count('from the ledger')==2 and '--fresh starts anew' in out and out.splitlines()[-1]==f"Report: {os.path.join('elsewhere','report.html')}"
    assert sh('demo --seeds 0 --fresh')[1].count('trained')==2

def test_report(sh, tmp_path):
    code,out,err = sh('run toy/a --preset smoke --seeds 0 --report out/r.html')
    assert code==0 and out.splitlines()[-1].startswith('Report: ') and '<html' in (tmp_path/'out/r.html').read_text(encoding='utf-8')

def test_masks_by_fold(sh, toys, tmp_path):
    "A table of masks: a line for each fold, IoU, another metric on request, one report"
    (toys/'papers/toymasks.py').write_text("""
from torch import nn
from medattn_nb.backbones import register_backbone
from medattn_nb.lab.experiments import Experiment
from medattn_nb.lab.training import Recipe
@register_backbone('toy-masks')
def net(num_classes, in_channels): return nn.Conv2d(in_channels, num_classes, 3, padding=1)
r = Recipe(data='phantom-dermoscopy', data_options=dict(n=24, size=32, masks='lesion'), size=32, task='segment', model='toy-masks', epochs=1, batch_size=8)
EXPERIMENTS = {'m':Experiment('toymasks', 'm', 'A toy', {'ce':{}, 'dice':dict(loss='dice')}, presets=dict(smoke=r), seeds=dict(smoke=(0,)), published={}, folds=dict(smoke=2))}
""")
    code,out,err = sh('run toymasks/m --preset smoke --set size=24,32 --report r.html')
    assert code==0 and out.count('fold 1 of 2')==out.count('fold 2 of 2')==2 and 'IoU, mean (SD) of runs' in out and 'AUC' not in out
    assert [json.loads(p.read_text())['recipe']['size'] for p in tmp_path.glob('runs/results/toymasks/m/*.json')]==[[24,32]]*4
    html = re.sub('base64,[^"]+', '', (tmp_path/'r.html').read_text())
    assert 'All metrics of the masks' in html and 'What the models see' in html and 'Left out' not in html and 'AUC' not in html
    code,out,err = sh('table toymasks/m --preset smoke --set size=24,32 --metric hd95')
    assert code==0 and 'missed cases (images)' in out
    code,out,err = sh('table toymasks/m --preset smoke --metric auc')
    assert code==2 and 'choose from iou' in err
    (toys/'papers/toymasks.py').unlink()

@pytest.mark.parametrize('name', ['selfattention/skin','nonlocalattention/fundus','mistakes/lgg','apspnet/us'])
def test_runs_that_came_with_the_project_are_shown(name, monkeypatch, capsys):
    "README: `medattn table` in the clone"
    monkeypatch.chdir(ROOT)
    assert cli.main(['table',name,'--preset','laptop'])==0
    out = capsys.readouterr().out
    assert 'not run' not in out and 'runs' in out and len(out.splitlines())>4
