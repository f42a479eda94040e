"Answers that are tried out, and the exercises on the pages"
import json
import numpy as np, pytest, torch
from conftest import ROOT
from medattn_nb.lab.exercises import Verdict, check_answer

def said(answer, solution, *args): return check_answer(answer, solution, [args]).said

def test_verdict():
    assert Verdict(2, 2, '') and not Verdict(1, 2, 'no') and repr(Verdict(2, 2, ''))=='Right (2 of 2).' and repr(Verdict(1, 2, 'no'))=='Not yet (1 of 2 right): no'
    v = check_answer(lambda x: abs(x), lambda x: x, [(1,),(-2,),(-3,)])
    assert (v.right,v.cases)==(1,3) and '(-2)` gives 2' in v.said and '-3' not in v.said

@pytest.mark.parametrize('got,want', [(1,1.), (np.float32(.1),.1), (torch.tensor(3),3), ([1,2],(1,2)), (np.eye(2),torch.eye(2)), (float('nan'),float('nan')), ('a','a'), (True,True), ({'a':1},{'a':1}), (1+1e-7,1),
    (['a','b'],['a','b']), ((3,'x'),(3.,'x')), ((np.ones(2),np.ones(3)),[torch.ones(2),torch.ones(3)]), ({'a':np.ones(2)},{'a':torch.ones(2)}), (np.True_,True), (torch.tensor(True),True), (True,np.bool_(True))])
def test_right(got, want): assert said(lambda: got, lambda: want)==''

@pytest.mark.parametrize('got,want,part', [(None,1,'where the three dots are'), (2,1,'gives 2, which is not right'), ('1',True,"gives '1', which"), (1,True,'not right'), ([1,2],1,'one number is wanted'), ('x',1,'numbers are wanted'),
    (1,[1,2],'has to be (2,)'), (np.zeros((2,3)),np.zeros((3,2)),'an array of shape (2, 3), where the shape has to be (3, 2)'), (torch.tensor([1.,2.,3.,4.]),[1,2,3,5],'25% of the values'), (np.float32(.5),.25,'gives 0.5, which'), (float('nan'),1.,'gives nan'),
    (['a','c'],['a','b'],'not right'), (['a'],['a','b'],'not right'), ((np.ones(2),np.ones(2)),(np.ones(2),np.ones(3)),'not right'), ({'a':np.ones(2)},{'a':np.zeros(2)},'not right'), ({'b':1},{'a':1},'not right'), (np.False_,True,'not right'), ('ab',['a','b'],'not right')])
def test_wrong(got, want, part):
    s = said(lambda: got, lambda: want)
    assert part in s and s.startswith('`<lambda>()`')

def test_tolerance():
    assert not check_answer(lambda: 1.01, lambda: 1., [()]) and check_answer(lambda: 1.01, lambda: 1., [()], tol=.1)

def test_errors_are_sentences():
    def broken(x): raise KeyError('no')
    assert "`broken(1)` raises KeyError: 'no'." in said(broken, lambda x: x, 1)

def test_arguments_are_copies():
    x = torch.arange(3.)
    assert not check_answer(lambda x: x.zero_(), lambda x: x+0, [(x,)]) and x.sum()==3

def test_the_answer_is_not_given_away():
    s = said(lambda: 7, lambda: 12345); assert '12345' not in s
    s = said(lambda: 'a'*500, lambda: 'b'); assert len(s)<120

PAGES = [p for p in sorted((ROOT/'nbs').rglob('*.ipynb')) if '... # your answer' in p.read_text('utf-8') and p.name!='65_lab.exercises.ipynb']

def test_every_paper_has_one(): assert {p.name for p in PAGES}>={p.name for p in (ROOT/'nbs'/'papers').glob('*.ipynb')}

@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_exercises_are_open_and_solved(page):
    "Each blank is tried, shows that it is one, and is filled under Solutions"
    cells = json.loads(page.read_text('utf-8'))['cells']; src = [''.join(c['source']) for c in cells]
    blanks = [s.split('def ')[1].split('(')[0] for s in src if '... # your answer' in s]
    at = next(i for i,s in enumerate(src) if s.startswith('## Solutions'))
    for name in blanks:
        tried = next(c for c,s in zip(cells[:at], src[:at]) if f'check_answer({name},' in s)
        assert 'Not yet (0 of' in json.dumps(tried['outputs'])
        assert any(s.startswith('#| code-fold: true') and f'def {name}(' in s and f'test_eq(bool(check_answer({name},' in s and s.count('check_answer')<=2 for s in src[at:])
