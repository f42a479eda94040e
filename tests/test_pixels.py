"What a pixel attends to: every module against its own rows, bad input, and the widget in JupyterLab in a real browser"
import builtins, os
from pathlib import Path
import numpy as np
import pytest, torch, torchvision
from torch import nn
from browser import WAIT, chromium, lab, needs, open_notebook, run_all, sees
from conftest import ROOT
from medattn_nb.attention import create, insert_attention
from medattn_nb.core import ArgumentError, MissingPackage
from medattn_nb.lab import pixels
from medattn_nb.lab.pixels import pixel_attention, pixel_figure, pixel_modules, pixel_widget

KINDS = 'nonlocal','pam','crisscross','nam'
def net(kind, where='stage:1', seed=0):
    torch.manual_seed(seed)
    return insert_attention(torchvision.models.resnet18(num_classes=2), kind, where)
X = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(1))

@pytest.mark.parametrize('kind', KINDS)
def test_rows_inside_a_network(kind):
    m = net(kind).train()
    w = pixel_attention(m, X, [(0,0),(63,47),(10,33)])
    assert w.shape==(2,3,16,12) and np.allclose(w.sum((2,3)), 1, atol=1e-4) and m.training and all(p.requires_grad for p in m.parameters())
    f = m.eval().layer1[:2](m.maxpool(m.relu(m.bn1(m.conv1(X)))))
    assert np.allclose(w, m.layer1.attention.rows(f, [(0,0),(15,11),(2,8)]).numpy(), atol=1e-6)
    assert not m.layer1.attention._forward_pre_hooks

def test_which_module():
    m = insert_attention(net('nam'), 'pam', 'stage:3')
    assert list(pixel_modules(m))==['layer1.attention','layer3.attention']
    assert pixel_attention(m, X, [(5,5)]).shape==(2,1,16,12) and pixel_attention(m, X, [(5,5)], 'layer3.attention').shape==(2,1,4,3)

@pytest.mark.parametrize('points,name,says', [([(64,0)],None,'rows 0 to 63'), ([(0,-1)],None,'columns 0 to 47'), ([(0,0)],'layer1','choose from layer1.attention')])
def test_bad_questions(points, name, says):
    with pytest.raises(ArgumentError, match=says): pixel_attention(net('nam'), X, points, name)

def test_a_network_without():
    with pytest.raises(ArgumentError, match='lets positions attend to positions'): pixel_attention(net('se'), X, [(0,0)])

def test_figure():
    w = pixel_attention(net('nam'), X, [(5,5),(60,40)])
    fig = pixel_figure(X[:,0], w, [(5,5),(60,40)])
    assert len([a for a in fig.axes if a.images])>=6
    with pytest.raises(ArgumentError, match='2 images and 1 points'): pixel_figure(X[:,0], w, [(5,5)])

def test_widget_follows_its_point():
    pytest.importorskip('anywidget')
    m = net('nam'); w = pixel_widget(m, X[:1], point=(5,7)); a,said = w.heat,w.said
    assert list(w.shape)==[64,48] and 'row 5, column 7 (cell 1, 1 of 16 x 12)' in said and w.image.startswith('data:image/png;base64,')
    w.point = [60,40]
    assert w.said!=said and 'row 60, column 40' in w.said and w.heat!=a
    with pytest.raises(ArgumentError, match='lets positions attend'): pixel_widget(net('se'), X[:1])

def test_without_anywidget(monkeypatch):
    real = builtins.__import__
    def no(name, *a, **k):
        if name=='anywidget': raise ImportError(name)
        return real(name, *a, **k)
    monkeypatch.setattr(builtins, '__import__', no); pixels._widget.cache_clear()
    with pytest.raises(MissingPackage, match='pip install anywidget'): pixel_widget(net('nam'), X[:1])
    pixels._widget.cache_clear()

CODE = '''import torch
from torch import nn
from medattn_nb.attention import NAM
from medattn_nb.lab.pixels import pixel_widget
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), NAM(8))
pixel_widget(model, torch.rand(1, 3, 40, 40))'''

def test_a_click_in_the_browser(tmp_path):
    needs(); pytest.importorskip('anywidget')
    import nbformat as nf
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait
    folder = tmp_path/'work'; folder.mkdir()
    nf.write(nf.v4.new_notebook(cells=[nf.v4.new_code_cell(CODE)], metadata=dict(kernelspec=dict(name='python3', display_name='Python 3', language='python'))), folder/'click.ipynb')
    with lab(folder, tmp_path/'home', ROOT) as server, chromium(tmp_path/'profile') as d:
        open_notebook(d, server, 'click.ipynb'); run_all(d)
        sees(d, 'row 20, column 20')
        left,right = d.find_elements('css selector', '.jp-OutputArea-output canvas')
        def pixels_of(c): return d.execute_script('return arguments[0].toDataURL()', c)
        before = pixels_of(right)
        size = left.size; ActionChains(d).move_to_element_with_offset(left, int(size['width']*(5.5/40-.5)), int(size['height']*(30.5/40-.5))).click().perform()
        sees(d, 'row 30, column 5'); WebDriverWait(d, WAIT).until(lambda _: pixels_of(right)!=before)
        assert d.switch_to.active_element==left; d.switch_to.active_element.send_keys('\ue014')  # arrow right
        sees(d, 'row 30, column 6')
        if p := os.environ.get('MEDATTN_SHOTS'): d.save_screenshot(str(Path(p)/'pixels.png'))
