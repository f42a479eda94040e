"Region shuffle: permutations, reach of each rule, exact inverse, maps that move together, one to one"
import pytest
import torch
from hypothesis import given, settings, strategies as st
from medattn_nb.core import ArgumentError, ShapeError, local_seed
from medattn_nb.data import regionshuffle as R
from medattn_nb.superpixels import superpixel_pool

rules = st.sampled_from(list(R.RULES))
sides = st.integers(1, 9)
def draws(n=7, rule='sanet', B=4000, k=None, seed=0):
    with local_seed('draws', rule, n, seed): return R.shuffle_order(B, n, rule, k)

def blocks(x, n):
    "The regions of (B,C,n*h,n*w) as (B,n*n,C*h*w)"
    B,C,H,W = x.shape
    return x.view(B, C, n, H//n, n, W//n).permute(0,2,4,1,3,5).reshape(B, n*n, -1)

# --- orders ---------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5), sides, rules, st.integers(0, 99))
def test_every_order_is_a_permutation(B, n, rule, seed):
    o = draws(n, rule, B, seed=seed)
    assert o.shape==(B,n*n) and o.dtype==torch.int64 and (o.sort(1).values==torch.arange(n*n)).all()

@pytest.mark.parametrize('rule,k', [('sanet',None), ('sanet',1.5), ('dcl',None), ('dcl',1), ('dcl',3.2)])
@pytest.mark.parametrize('n', [2,7,10])
def test_reach(rule, k, n):
    "Displacement below 2k in rows and in columns, and the bound is reached where the grid is large enough"
    d = R.displacement(draws(n, rule, k=k)).abs()
    reach = -(-2*(k or R.RULES[rule])//1)-1
    assert d.max()<=reach and (reach>=n-1 or reach>2 or d.max()==reach)

def test_reach_of_dcl_is_sharp(): assert R.displacement(draws(rule='dcl', B=20_000)).abs().max()==3

def test_no_reach_no_shuffle(): assert (draws(k=0)==torch.arange(49)).all()

def test_neighbours_change_one_time_in_eight():
    d = R.displacement(draws(B=40_000)).view(-1,7,7,2)
    assert abs((d[:,:,0,1]==1).float().mean()-1/8)<.004 and abs((d[:,3,3,0]==1).float().mean()-1/8)<.01

def test_released_code():
    "First to last column 2^-6, never back by more than one, whole rows move together"
    o = draws(rule='dcl-code', B=40_000)
    d = R.displacement(o).view(-1,7,7,2)
    assert d.min()==-1 and d.max()==6
    assert abs((d[:,:,0,1]==6).float().mean()-2**-6)<.001 and abs((d[:,0,:,0]==6).float().mean()-2**-6)<.003
    assert (o.view(-1,7,7)//7==(o.view(-1,7,7)//7)[...,:1]).all()

def walk(n, turns):
    "The released code's walk for one line, step by step"
    line = []
    for i in range(n):
        line.append(i)
        if i and turns[i-1]: line[-2:] = line[-1],line[-2]
    return line

def test_walk_against_a_loop():
    with local_seed('w'): a = R._walked((200,), 7, None)
    with local_seed('w'): turns = torch.rand(200, 6)<.5
    assert a.tolist()==[walk(7, t) for t in turns.tolist()]

def test_literal_walk_against_a_loop():
    n,B = 4,50
    with local_seed('l'): a = R.shuffle_order(B, n, 'sanet-walk')
    with local_seed('l'): u = torch.rand(B, n*n)
    for b in range(B):
        g = list(range(n*n))
        for p in range(n*n):
            r,c = divmod(p, n)
            nb = [i*n+j for i,j in ((r-1,c),(r+1,c),(r,c-1),(r,c+1)) if 0<=i<n and 0<=j<n]
            q = nb[int(u[b,p]*len(nb))]
            g[p],g[q] = g[q],g[p]
        assert a[b].tolist()==g

def test_jitter_against_sort():
    with local_seed('j'): a = R._jittered((50,), 7, 2, None)
    with local_seed('j'): q = torch.arange(7)+2*(2*torch.rand(50, 7)-1)
    assert a.tolist()==[sorted(range(7), key=o.__getitem__) for o in q.tolist()]

def test_rows_then_columns():
    "A region first changes its column within its row, then its row within that column"
    with local_seed('g'): rows,cols = R._jittered((9,5), 5, 2, None),R._jittered((9,5), 5, 2, None)
    o = R._in_turn(rows, cols, 5)
    for b in range(9):
        first = [[i*5+rows[b,i,j].item() for j in range(5)] for i in range(5)]
        assert o[b].tolist()==[first[cols[b,j,i]][j] for i in range(5) for j in range(5)]

def test_displacement():
    o = torch.arange(9)[None].clone()
    o[0,[0,5]] = o[0,[5,0]]
    d = R.displacement(o)[0]
    assert d[0].tolist()==[1,2] and d[5].tolist()==[-1,-2] and d.abs().sum()==6

@pytest.mark.parametrize('rule', list(R.RULES))
def test_seed(rule): assert (draws(rule=rule, B=9)==draws(rule=rule, B=9)).all() and (draws(rule=rule, B=9)!=draws(rule=rule, B=9, seed=1)).any()

# --- pixels ---------------------------------------------------------------------------------------------
@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3), st.integers(1, 7), st.integers(1, 4), st.integers(1, 4), rules, st.integers(0, 99))
def test_regions_are_kept_whole(B, n, h, w, rule, seed):
    "Where n divides the sides: place p holds region order[p], unchanged"
    with local_seed('x', seed): x,o = torch.rand(B,2,n*h,n*w),R.shuffle_order(B, n, rule)
    y = R.shuffle_by(x, o)
    assert (blocks(y, n)==blocks(x, n).gather(1, o[...,None].expand(-1,-1,2*h*w))).all()
    assert (R.shuffle_by(x, o, 'stretch')==y).all() and (R.unshuffle(R.shuffle_by(x, o, 'stretch'), o, 'stretch')==x).all()

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 7), st.integers(0, 30), st.integers(0, 30), rules, st.sampled_from([torch.float32,torch.float16,torch.uint8,torch.bool,torch.int64]))
def test_inverse_is_exact_at_any_size(B, n, h, w, rule, dtype):
    with local_seed(n, h, w): x,o = (torch.rand(B,2,n+h,n+w)*9).to(dtype),R.shuffle_order(B, n, rule)
    y = R.shuffle_by(x, o)
    assert y.dtype==dtype and y.shape==x.shape and (R.unshuffle(y, o)==x).all()
    assert (y.flatten(1).sort(1).values==x.flatten(1).sort(1).values).all()

@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(0, 30), st.integers(0, 30))
def test_stretched_regions(n, h, w):
    "Every pixel comes from the region that the order names, at the same relative place; at home nothing is stretched"
    H,W = n+h,n+w
    with local_seed(n, h, w): o = R.shuffle_order(3, n, 'dcl')
    cy,cx = [i*H//n for i in range(n+1)],[i*W//n for i in range(n+1)]
    part = torch.empty(H, W, dtype=torch.int64)
    for p in range(n*n): part[cy[p//n]:cy[p//n+1],cx[p%n]:cx[p%n+1]] = p
    i = R.shuffle_index(o, (H,W), 'stretch')
    assert (part.flatten()[i]==o.gather(1, part.flatten().expand(3,-1)).view(3,H,W)).all()
    home = torch.arange(n*n).expand(1, -1)
    assert (R.shuffle_index(home, (H,W), 'stretch')==torch.arange(H*W).view(H,W)).all()

def test_what_is_left_over_stays():
    "59 = 7*8+3: one line above and two below keep their place"
    x = torch.rand(4,1,59,56)
    y = R.shuffle_by(x, draws(B=4, rule='dcl'))
    assert (y[:,:,:1]==x[:,:,:1]).all() and (y[:,:,57:]==x[:,:,57:]).all() and (y!=x).any()

def test_memory_formats():
    x,o = torch.rand(3,4,21,14),draws(B=3, rule='dcl')
    y = R.shuffle_by(x, o)
    assert (R.shuffle_by(x.contiguous(memory_format=torch.channels_last), o)==y).all() and (R.shuffle_by(x[:,0], o)==y[:,0]).all()
    assert (R.shuffle_by(x[:,:,None], o)==y[:,:,None]).all()

def test_gradient_goes_back():
    x = torch.rand(2,1,14,14, requires_grad=True)
    o,g = draws(B=2, rule='dcl'),torch.rand(2,1,14,14)
    R.shuffle_by(x, o).backward(g)
    assert (x.grad==R.unshuffle(g, o)).all()

# --- together -------------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(7, 40), st.integers(7, 40), rules, st.sampled_from(['keep','stretch']))
def test_image_mask_and_superpixels_move_alike(B, H, W, rule, uneven):
    with local_seed(H, W): x = torch.rand(B,3,H,W)
    mask,labels = x[:,:1]>.6,(x[:,0]*5).long()
    y,m,l,o = R.shuffle_regions(x, mask, labels, rule=rule, uneven=uneven)
    assert (m==(y[:,:1]>.6)).all() and (l==(y[:,0]*5).long()).all() and m.dtype==torch.bool and l.dtype==torch.int64
    assert (R.shuffle_by(x, o, uneven)==y).all()

def test_superpixel_means_do_not_change():
    x = torch.rand(4,3,63,70, dtype=torch.float64)
    sp = torch.randint(-1, 30, (4,63,70))
    y,s,o = R.shuffle_regions(x, sp, rule='dcl')
    assert (o!=torch.arange(49)).any() and torch.allclose(superpixel_pool(y, s, 30), superpixel_pool(x, sp, 30), atol=1e-12)

@pytest.mark.parametrize('B', [0,1,2,5,8])
@pytest.mark.parametrize('how', ['append','replace'])
def test_one_to_one(B, how):
    x,m = torch.rand(B,3,14,21),torch.rand(B,14,21)>.5
    with local_seed('half', B): y,n,o = R.shuffle_half(x, m, how=how, rule='dcl')
    same = (o==torch.arange(49)).all(1)
    if how=='append': assert len(y)==len(n)==len(o)==2*B and same[:B].all() and (y[:B]==x).all() and (n[:B]==m).all() and same.sum()==B
    else: assert len(y)==len(o)==B and same.sum() in (B//2,B-B//2) and (y[same]==x[same]).all()
    assert (R.unshuffle(y, o)==(torch.cat([x,x]) if how=='append' else x)).all()

def test_which_half_is_by_chance():
    with local_seed('which'): on = torch.stack([(R.half_order(6, rule='dcl')!=torch.arange(49)).any(1) for _ in range(400)]).float()
    assert (on.sum(1)==3).all() and (on.mean(0)-.5).abs().max()<.1

@pytest.mark.parametrize('B', [1,5])
def test_odd_batches_are_one_to_one_in_the_long_run(B):
    with local_seed('odd', B): n = torch.stack([(R.half_order(B, rule='dcl')!=torch.arange(49)).any(1).sum() for _ in range(400)]).float()
    assert set(n.tolist())=={B//2,B//2+1} and abs(n.mean()-B/2)<.1

# --- bad input ------------------------------------------------------------------------------------------
x4 = torch.rand(2,3,14,14)
@pytest.mark.parametrize('f', [
    lambda: R.shuffle_order(2, 0), lambda: R.shuffle_order(2, 2.5), lambda: R.shuffle_order(2, True), lambda: R.shuffle_order(2, rule='near'), lambda: R.shuffle_order(2, k=-1), lambda: R.shuffle_order(2, k=float('nan')),
    lambda: R.shuffle_order(2, rule='dcl-code', k=1), lambda: R.shuffle_order(2, rule='sanet-walk', k=1), lambda: R.shuffle_regions(x4, n=15), lambda: R.shuffle_regions(x4, uneven='crop'), lambda: R.shuffle_half(x4, how='both')])
def test_bad_arguments(f):
    with pytest.raises(ArgumentError): f()

@pytest.mark.parametrize('f', [
    lambda: R.shuffle_regions([1]), lambda: R.shuffle_regions(x4[0,0]), lambda: R.shuffle_regions(x4, x4[:1]), lambda: R.shuffle_regions(x4, x4[...,:7]), lambda: R.shuffle_regions(x4, x4.numpy()),
    lambda: R.shuffle_by(x4, torch.arange(49)[None]), lambda: R.shuffle_by(x4, torch.zeros(2,48).long()), lambda: R.shuffle_by(x4, torch.zeros(2,49)), lambda: R.shuffle_by('x', torch.zeros(2,49)), lambda: R.shuffle_by(x4, None), lambda: R.shuffle_half(x4[0,0])])
def test_bad_shapes(f):
    with pytest.raises(ShapeError): f()
