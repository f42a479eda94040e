"A download is whole and checked or not there at all: bad lines, bad servers, bad archives, a killed process"
import hashlib, io, os, shutil, signal, stat, struct, subprocess, sys, tarfile, threading, time, types, zipfile
from collections import namedtuple
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import pytest
from hypothesis import given, settings, strategies as st
from conftest import ROOT
import medattn_nb.data.download as D
from medattn_nb.core import ArgumentError, DataError
from medattn_nb.data.download import SOURCES, Remote, get, get_data, git_blob_sha1, git_tree_sha1, safe_extract, sources

BODY = hashlib.shake_256(b'body').digest(300_000)
OTHER = hashlib.shake_256(b'other').digest(300_000)
def sha(b): return hashlib.sha256(b).hexdigest()
def files(p): return sorted(o.relative_to(p).as_posix() for o in p.rglob('*') if o.is_file())

# --- a server that can be told to misbehave ------------------------------------------------------------
class Handler(BaseHTTPRequestHandler):
    def log_message(self, *a): pass
    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get('Range'), self.headers.get('If-Range')))
        acts = self.server.acts[self.path]
        (acts.pop(0) if isinstance(acts, list) and len(acts)>1 else acts[0] if isinstance(acts, list) else acts)(self)

def head(h, code, **headers):
    h.send_response(code)
    for k,v in headers.items():
        if v is not None: h.send_header(k.replace('_','-'), str(v))
    h.end_headers()

def serve(body, etag='"one"', cut=None, ranges=True, length=None, heed=True, shift=0):
    "An answer with `body`: cut short, blind to ranges, lying about its length, blind to If-Range, or beginning elsewhere"
    def f(h):
        r,at = h.headers.get('Range'),0
        if r and ranges and (not heed or h.headers.get('If-Range') in (None,etag)): at = int(r[6:-1])
        part = body[at:]
        head(h, 206 if at else 200, Content_Length=len(part) if length is None else length, ETag=etag, Content_Range=f'bytes {at+shift}-{len(body)-1}/{len(body)}' if at else None)
        h.wfile.write(part[:cut])
    return f

def code(n, **headers): return lambda h: head(h, n, Content_Length=0, **headers)

@pytest.fixture
def web(monkeypatch):
    monkeypatch.setenv('no_proxy', '127.0.0.1'); monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    s = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    s.daemon_threads = True
    s.acts,s.asked,s.url = {},[],f'http://127.0.0.1:{s.server_port}'
    threading.Thread(target=s.serve_forever, kwargs=dict(poll_interval=.01), daemon=True).start()
    yield s
    s.shutdown(); s.server_close()

def remote(web, body=BODY, known=True, **kw): return Remote(f'{web.url}/f', sha(body) if known else None, 'f.bin', **kw)
def fetch(r, tmp, name='set', **kw): return get(r, tmp, name, **{**dict(progress=False, wait=0, timeout=5, tries=3), **kw})
def ranges(web): return [o[1] for o in web.asked]

# --- good and bad lines --------------------------------------------------------------------------------
def test_plain_and_again(web, tmp_path):
    web.acts['/f'] = serve(BODY)
    d = fetch(remote(web, size=len(BODY)), tmp_path)
    assert (d/'f.bin').read_bytes()==BODY and files(tmp_path)==['set/.medattn.json','set/f.bin']
    assert fetch(remote(web), tmp_path)==d and len(web.asked)==1

def test_broken_off_many_times(web, tmp_path):
    web.acts['/f'] = serve(BODY, cut=60_000)
    d = fetch(remote(web), tmp_path, tries=9)
    assert (d/'f.bin').read_bytes()==BODY
    assert web.asked==[('/f',None,None)]+[('/f',f'bytes={n}-','"one"') for n in range(60_000, 300_000, 60_000)]

def test_progress_earns_patience(web, tmp_path):
    "A bad line that brings a mebibyte each time gets there however few tries it has"
    big = BODY*12
    web.acts['/f'] = serve(big, cut=2**20)
    assert (fetch(remote(web, big), tmp_path, tries=1)/'f.bin').read_bytes()==big

def test_gives_up_keeps_what_came_and_goes_on(web, tmp_path):
    web.acts['/f'] = [serve(BODY, cut=100_000), serve(BODY, cut=0)]
    with pytest.raises(DataError, match='ended after 100,000 of 300,000 bytes.*100,000 bytes are kept'): fetch(remote(web), tmp_path)
    assert not (tmp_path/'set').exists()
    web.asked.clear(); web.acts['/f'] = serve(BODY)
    assert (fetch(remote(web), tmp_path)/'f.bin').read_bytes()==BODY and ranges(web)==['bytes=100000-']

def test_server_without_ranges(web, tmp_path):
    web.acts['/f'] = [serve(BODY, cut=1000, ranges=False), serve(BODY, ranges=False)]
    assert (fetch(remote(web), tmp_path)/'f.bin').read_bytes()==BODY and ranges(web)==[None,'bytes=1000-']

def test_file_changes_between(web, tmp_path):
    "If-Range brings the whole new file"
    web.acts['/f'] = [serve(OTHER, cut=1000), serve(BODY, '"two"')]
    assert (fetch(remote(web), tmp_path)/'f.bin').read_bytes()==BODY

def test_mix_of_two_versions_is_fetched_anew(web, tmp_path):
    web.acts['/f'] = [serve(OTHER, cut=1000)]
    with pytest.raises(DataError): fetch(remote(web), tmp_path, tries=1)
    web.acts['/f'] = serve(BODY, '"two"', heed=False)
    assert (fetch(remote(web), tmp_path)/'f.bin').read_bytes()==BODY and ranges(web)==[None,'bytes=1000-',None]

@pytest.mark.parametrize('etag', [None,'W/"weak"'])
def test_nothing_to_tell_versions_by(web, tmp_path, etag):
    "Without a mark and a sum a part is not gone on with; with a sum it is"
    for known,second in ((False,None),(True,'bytes=1000-')):
        web.asked.clear(); web.acts['/f'] = [serve(BODY, etag, cut=1000), serve(BODY, etag)]
        assert (fetch(remote(web, known=known), tmp_path, f'set{known}', trust=True)/'f.bin').read_bytes()==BODY and ranges(web)==[None,second]

def test_another_address_begins_anew(web, tmp_path):
    web.acts['/g'] = serve(BODY, cut=1000); web.acts['/f'] = serve(BODY)
    with pytest.raises(DataError): fetch(Remote(f'{web.url}/g', sha(BODY), 'f.bin'), tmp_path, tries=1)
    fetch(remote(web), tmp_path)
    assert web.asked[-1][:2]==('/f',None)

def test_answer_that_begins_elsewhere(web, tmp_path):
    web.acts['/f'] = [serve(BODY, cut=1000), serve(BODY, shift=7), serve(BODY)]
    assert (fetch(remote(web), tmp_path)/'f.bin').read_bytes()==BODY and ranges(web)==[None,'bytes=1000-',None]

def test_416_complete_and_shorter(web, tmp_path):
    def lies(h): head(h, 200, Content_Length=len(BODY)+9, ETag='"one"'); h.wfile.write(BODY)
    web.acts['/f'] = [lies, code(416, Content_Range=f'bytes */{len(BODY)}')]
    assert (fetch(remote(web), tmp_path)/'f.bin').read_bytes()==BODY
    web.acts['/f'] = [serve(OTHER+BODY, cut=400_000), code(416, Content_Range=f'bytes */{len(BODY)}'), serve(BODY)]
    assert (fetch(remote(web), tmp_path, 'two')/'f.bin').read_bytes()==BODY

def test_length_lies(web, tmp_path):
    web.acts['/f'] = serve(BODY, length=400_000, ranges=False)
    with pytest.raises(DataError, match='ended after 300,000 of 400,000'): fetch(remote(web), tmp_path)
    web.acts['/f'] = serve(BODY, length=200_000)
    with pytest.raises(DataError, match=f'expected {sha(BODY)}'): fetch(remote(web), tmp_path, 'two')
    assert not (tmp_path/'two').exists()

def test_another_size_than_known(web, tmp_path):
    web.acts['/f'] = serve(BODY)
    with pytest.raises(DataError, match='300,000 bytes on the server; 299,999 were expected'): fetch(remote(web, size=299_999), tmp_path)
    assert len(web.asked)==1 and not (tmp_path/'set').exists()

def chunked(body, end=True):
    def f(h):
        h.protocol_version = 'HTTP/1.1'
        head(h, 200, Transfer_Encoding='chunked', Connection='close')
        for i in range(0, len(body), 50_000): h.wfile.write(f'{len(body[i:i+50_000]):x}\r\n'.encode()+body[i:i+50_000]+b'\r\n')
        if end: h.wfile.write(b'0\r\n\r\n')
    return f

def test_chunks(web, tmp_path):
    web.acts['/f'] = [chunked(BODY[:100_000], end=False), chunked(BODY)]
    assert (fetch(remote(web), tmp_path)/'f.bin').read_bytes()==BODY

def test_endless_file_of_known_size(web, tmp_path):
    def endless(h):
        head(h, 200)
        try:
            for _ in range(10_000): h.wfile.write(BODY)
        except OSError: pass
    web.acts['/f'] = endless
    with pytest.raises(DataError, match='expected'): fetch(remote(web, size=len(BODY)), tmp_path)
    assert not files(tmp_path) or max((tmp_path/o).stat().st_size for o in files(tmp_path))<2*len(BODY)

@pytest.mark.parametrize('body,says', [(OTHER,'SHA-256'), (b'<!DOCTYPE html><p>Log in', 'a web page perhaps')])
def test_wrong_hash(web, tmp_path, body, says):
    web.acts['/f'] = serve(body)
    with pytest.raises(DataError, match=says) as e: fetch(remote(web), tmp_path)
    assert sha(body) in str(e.value) and sha(BODY) in str(e.value) and len(web.asked)==1
    assert files(tmp_path)==['.set.getting/lock']

@pytest.mark.parametrize('n', [400,401,403,404,410,451])
def test_refused_for_good(web, tmp_path, n):
    web.acts['/f'] = code(n)
    with pytest.raises(DataError, match=f'the answer {n}'): fetch(remote(web), tmp_path)
    assert len(web.asked)==1

def test_busy_server(web, tmp_path):
    web.acts['/f'] = [code(503), code(429), serve(BODY)]
    assert (fetch(remote(web), tmp_path)/'f.bin').read_bytes()==BODY
    web.acts['/f'] = code(500)
    with pytest.raises(DataError, match='the server answers 500'): fetch(remote(web), tmp_path, 'two')

def test_no_server(tmp_path):
    with pytest.raises(DataError, match='f.bin: got .*refused'): fetch(Remote('http://127.0.0.1:9/f', sha(BODY), 'f.bin'), tmp_path, tries=2)

def test_waits_longer_and_longer(web, tmp_path, monkeypatch):
    naps = []
    monkeypatch.setattr(D, 'time', types.SimpleNamespace(sleep=naps.append)) # the server's threads keep theirs
    web.acts['/f'] = code(503)
    with pytest.raises(DataError): fetch(remote(web), tmp_path, tries=9, wait=1)
    assert naps==[2,4,8,16,32,60,60,60]

def test_slow_is_fine_silent_is_not(web, tmp_path):
    def drip(h):
        head(h, 200, Content_Length=20)
        for i in range(20): h.wfile.write(BODY[i:i+1]); h.wfile.flush(); time.sleep(.02)
    def silent(h): head(h, 200, Content_Length=20); h.wfile.write(BODY[:5]); h.wfile.flush(); time.sleep(1)
    web.acts['/f'] = drip
    assert (fetch(remote(web, BODY[:20]), tmp_path, timeout=.3)/'f.bin').read_bytes()==BODY[:20]
    web.acts['/f'] = silent
    with pytest.raises(DataError, match='nothing came for 0.1 seconds'): fetch(remote(web, BODY[:20]), tmp_path, 'two', timeout=.1, tries=1)

# --- redirects -----------------------------------------------------------------------------------------
def test_redirects(web, tmp_path):
    web.acts['/f'] = code(302, Location='/g'); web.acts['/g'] = [serve(BODY, cut=1000), serve(BODY)]
    assert (fetch(remote(web), tmp_path)/'f.bin').read_bytes()==BODY
    assert [o[:2] for o in web.asked]==[('/f',None),('/g',None),('/f','bytes=1000-'),('/g','bytes=1000-')]

@pytest.mark.parametrize('to', ['ftp://127.0.0.1/f', 'file:///etc/passwd', '/loop'])
def test_redirects_refused(web, tmp_path, to):
    web.acts['/f'] = web.acts['/loop'] = code(302, Location=to)
    with pytest.raises(DataError): fetch(remote(web), tmp_path)
    assert files(tmp_path)==['.set.getting/lock'] and len(web.asked)<20

@pytest.mark.parametrize('a,b,ok', [('http','http',True), ('http','https',True), ('https','https',True), ('https','http',False)])
def test_redirect_keeps_https(a, b, ok):
    req = D.urllib.request.Request(f'{a}://a.org/x')
    def go(): return D._Redirect().redirect_request(req, None, 302, '', {}, f'{b}://b.org/y')
    if ok: assert go().full_url==f'{b}://b.org/y'
    else:
        with pytest.raises(DataError, match='not followed'): go()

# --- disks and processes -------------------------------------------------------------------------------
Usage = namedtuple('Usage', 'total used free')

def test_no_room(web, tmp_path, monkeypatch):
    web.acts['/f'] = serve(BODY)
    monkeypatch.setattr(D.shutil, 'disk_usage', lambda p: Usage(0, 0, 1000))
    with pytest.raises(DataError, match='free on this disk'): fetch(remote(web, size=len(BODY)), tmp_path)
    assert not web.asked
    with pytest.raises(DataError, match='free on this disk'): fetch(remote(web), tmp_path)
    with pytest.raises(DataError, match='free on this disk'): safe_extract(zipped(tmp_path/'a.zip', {'a':BODY}), tmp_path/'a')
    assert not (tmp_path/'a').exists()

def test_disk_runs_full(web, tmp_path, monkeypatch):
    web.acts['/f'] = serve(BODY)
    def full(*a, **kw): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(D.shutil, 'copyfile', full)
    with pytest.raises(DataError, match='a full disk'): fetch(remote(web), tmp_path)
    monkeypatch.undo(); monkeypatch.setenv('no_proxy', '127.0.0.1')
    assert fetch(remote(web), tmp_path).is_dir() and len(web.asked)==1

def test_stopped_before_the_end_needs_no_second_download(web, tmp_path, monkeypatch):
    web.acts['/f'] = serve(zip_bytes({'a/1':b'1'}))
    r = Remote(f'{web.url}/f', sha(zip_bytes({'a/1':b'1'})), 'f.zip', archive='zip')
    monkeypatch.setattr(D, '_put', lambda *a: 1/0)
    with pytest.raises(ZeroDivisionError): fetch(r, tmp_path)
    assert not (tmp_path/'set').exists()
    monkeypatch.undo(); monkeypatch.setenv('no_proxy', '127.0.0.1')
    assert files(fetch(r, tmp_path))==['.medattn.json','a/1'] and len(web.asked)==1 and files(tmp_path)==['set/.medattn.json','set/a/1']

def test_damaged_while_it_lay_there(web, tmp_path, monkeypatch):
    "A finished file that no longer has its sum is fetched again"
    (tmp_path/'.set.getting').mkdir()
    (tmp_path/'.set.getting/f.bin').write_bytes(OTHER)
    web.acts['/f'] = serve(BODY)
    assert (fetch(remote(web), tmp_path)/'f.bin').read_bytes()==BODY

def test_killed_process_goes_on(web, tmp_path):
    "SIGKILL in the middle; the next process asks for the rest and the folder is whole"
    gate = threading.Event()
    def half(h): head(h, 200, Content_Length=len(BODY), ETag='"one"'); h.wfile.write(BODY[:200_000]); h.wfile.flush(); gate.wait(60)
    web.acts['/f'] = half
    prog = f"from medattn_nb.data.download import Remote,get; get(Remote({web.url+'/f'!r}, {sha(BODY)!r}, 'f.bin'), {str(tmp_path)!r}, 'set', progress=False)"
    p = subprocess.Popen([sys.executable, '-c', prog], cwd=ROOT, env={**os.environ, 'no_proxy':'127.0.0.1'})
    part = tmp_path/'.set.getting/f.bin.part'
    try:
        for _ in range(3000):
            if part.exists() and part.stat().st_size>=65_536 or p.poll() is not None: break
            time.sleep(.02)
        assert p.poll() is None
        with pytest.raises(DataError, match='already under way'): fetch(remote(web), tmp_path)
    finally: p.kill(); p.wait(); gate.set()
    n = part.stat().st_size
    web.asked.clear(); web.acts['/f'] = serve(BODY)
    assert 0<n<=200_000 and (fetch(remote(web), tmp_path)/'f.bin').read_bytes()==BODY and ranges(web)==[f'bytes={n}-']

# --- sums, trust, trees, folders -----------------------------------------------------------------------
def test_unknown_sum(web, tmp_path):
    web.acts['/f'] = serve(BODY)
    with pytest.raises(DataError, match='no published check sum for f.bin'): fetch(remote(web, known=False), tmp_path)
    assert not web.asked
    fetch(remote(web, known=False), tmp_path, 'given', sha256=sha(BODY))
    fetch(remote(web, known=False), tmp_path, 'given2', sha256={'f.bin':sha(BODY)})
    assert not list(tmp_path.glob('*.sha256.json'))
    d = fetch(remote(web, known=False), tmp_path, trust=True)
    assert sha(BODY) in (tmp_path/'set.sha256.json').read_text()
    shutil.rmtree(d); web.acts['/f'] = serve(OTHER)
    for kw in ({}, {'trust':True}):
        with pytest.raises(DataError, match=sha(OTHER)): fetch(remote(web, known=False), tmp_path, **kw)
    assert (fetch(remote(web, known=False), tmp_path, sha256=sha(OTHER))/'f.bin').read_bytes()==OTHER

def test_half_an_archive_is_not_trusted(web, tmp_path):
    "A server that hangs up without having said how long the file is"
    whole = zip_bytes({'a':BODY})
    r = Remote(f'{web.url}/f', None, 'f.zip', archive='zip')
    def half(h): head(h, 200); h.wfile.write(whole[:200_000])
    web.acts['/f'] = [half, serve(whole)]
    with pytest.raises(DataError, match='damaged archive'): fetch(r, tmp_path, trust=True)
    assert files(tmp_path)==['.set.getting/lock']
    assert (fetch(r, tmp_path, trust=True)/'a').read_bytes()==BODY and sha(whole) in (tmp_path/'set.sha256.json').read_text()

def test_a_given_sum_wins(web, tmp_path):
    web.acts['/f'] = serve(OTHER)
    assert (fetch(remote(web), tmp_path, sha256=sha(OTHER))/'f.bin').read_bytes()==OTHER
    with pytest.raises(DataError): fetch(remote(web, OTHER), tmp_path, 'two', sha256=sha(BODY))

def test_broken_record_of_trust(web, tmp_path):
    (tmp_path/'set.sha256.json').write_text('{"f.bin"')
    with pytest.raises(DataError, match='no JSON'): fetch(remote(web, known=False), tmp_path, trust=True)

def test_several_files(web, tmp_path):
    web.acts.update({'/a':serve(zip_bytes({'x/train/1':b'1', 'x/readme':b'r'})), '/b':serve(tar_bytes({'2':b'2'}, 'w:gz')), '/c':serve(b'file,label\n')})
    rs = [Remote(f'{web.url}/a', None, 'a.zip', archive='zip', strip=1, keep=('train/*',)), Remote(f'{web.url}/b', None, 'b.tar.gz', archive='tar', into='test'), Remote(f'{web.url}/c', None, 'c.csv', into='meta')]
    d = fetch(rs, tmp_path, trust=True)
    assert files(d)==['.medattn.json','meta/c.csv','test/2','train/1'] and files(tmp_path)==sorted([f'set/{o}' for o in files(d)]+['set.sha256.json'])
    with pytest.raises(DataError, match='made from other files'): fetch(rs[:2], tmp_path, trust=True)
    (d/'.medattn.json').write_text('[1]')
    with pytest.raises(DataError, match='made from other files'): fetch(rs, tmp_path, trust=True)

def test_two_archives_with_one_file(web, tmp_path):
    web.acts.update({'/a':serve(zip_bytes({'1':b'1'})), '/b':serve(zip_bytes({'1':b'2'}))})
    with pytest.raises(DataError, match="called '1'"): fetch([Remote(f'{web.url}/{o}', None, f'{o}.zip', archive='zip') for o in 'ab'], tmp_path, trust=True)
    assert not (tmp_path/'set').exists()

def test_tree(web, tmp_path):
    web.acts['/f'] = serve(zip_bytes({'x/train/1':b'1', 'x/train/sub/2':b'2'}))
    (tmp_path/'t/sub').mkdir(parents=True); (tmp_path/'t/1').write_bytes(b'1'); (tmp_path/'t/sub/2').write_bytes(b'2')
    def r(folder, tree): return Remote(f'{web.url}/f', None, 'f.zip', archive='zip', strip=1, trees=((folder,tree),))
    assert fetch(r('train', git_tree_sha1(tmp_path/'t')), tmp_path).is_dir() and not list(tmp_path.glob('*.json'))
    for folder,tree in (('train','0'*40),('elsewhere',git_tree_sha1(tmp_path/'t'))):
        with pytest.raises(DataError, match='git tree'): fetch(r(folder, tree), tmp_path, 'two')
    assert not (tmp_path/'two').exists()

def test_a_folder_in_the_way(web, tmp_path):
    web.acts['/f'] = serve(BODY)
    (tmp_path/'empty').mkdir(); (tmp_path/'mine').mkdir(); (tmp_path/'mine/x').write_text('x'); (tmp_path/'file').write_text('x')
    assert (fetch(remote(web), tmp_path, 'empty')/'f.bin').is_file()
    for o in ('mine','file'):
        with pytest.raises(DataError, match='not made here'): fetch(remote(web), tmp_path, o)
    assert (tmp_path/'mine/x').read_text()=='x' and len(web.asked)==1

@pytest.mark.parametrize('kw', [dict(url='ftp://a/b'), dict(url='file:///a'), dict(url='http:///a'), dict(sha256='abc'), dict(sha256='A'*64), dict(file='../a'), dict(file='a/b'), dict(file=''), dict(archive='rar'), dict(into='../a'), dict(into='/a'), dict(into='C:a')])
def test_remote_checks(kw):
    with pytest.raises(ArgumentError): Remote(**{**dict(url='https://a.org/b', sha256=None, file='b'), **kw})

@pytest.mark.parametrize('name', ['', '..', 'a/b', 'a\\b', '/a', '.a'])
def test_name_checks(name, tmp_path):
    with pytest.raises(ArgumentError): get(Remote('https://a.org/b', None, 'b'), tmp_path, name)

def test_argument_checks(tmp_path):
    r = Remote('https://a.org/b', None, 'b')
    for rs in ((), (r,r)):
        with pytest.raises(ArgumentError): get(rs, tmp_path, 'x')
    for s in ('abc', {'c':'0'*64}, {'b':'xyz'}):
        with pytest.raises(ArgumentError): get(r, tmp_path, 'x', sha256=s)

def test_progress_bar(web, tmp_path, capsys):
    web.acts['/f'] = serve(zip_bytes({'1':BODY}))
    get(Remote(f'{web.url}/f', None, 'f.zip', archive='zip'), tmp_path, 'set', trust=True)
    err = capsys.readouterr().err
    assert 'f.zip' in err and 'unpacking f.zip' in err and '100%' in err

# --- archives ------------------------------------------------------------------------------------------
def zip_bytes(members, how=zipfile.ZIP_STORED):
    b = io.BytesIO()
    with zipfile.ZipFile(b, 'w') as z:
        for k,v in (members.items() if isinstance(members, dict) else members): z.writestr(zipfile.ZipInfo(k) if isinstance(k, str) else k, v, how)
    return b.getvalue()

def zipped(path, members, **kw):
    path.write_bytes(zip_bytes(members, **kw))
    return path

def tar_bytes(members, mode='w'):
    b = io.BytesIO()
    with tarfile.open(fileobj=b, mode=mode) as t:
        for k,v in (members.items() if isinstance(members, dict) else members):
            o = tarfile.TarInfo(k) if isinstance(k, str) else k
            if o.isreg(): o.size = len(v)
            t.addfile(o, io.BytesIO(v))
    return b.getvalue()

def zip_kind(name, kind):
    o = zipfile.ZipInfo(name); o.create_system = 3; o.external_attr = (kind|0o777)<<16
    return o
def tar_kind(name, kind, link=''):
    o = tarfile.TarInfo(name); o.type = kind; o.linkname = link
    return o

NAMES = {'parent':'../evil', 'deep':'a/../../evil', 'absolute':'/evil', 'drive':'C:evil', 'drive2':'c:/evil', 'dot-drive':'./C:/evil', 'inner-drive':'a/C:/evil', 'backslash':'a\\..\\..\\evil', 'end':'a/..'}
HOSTILE = {**{f'zip-{k}':zip_bytes([('good',b'1'),(v,b'2')]) for k,v in NAMES.items()}, **{f'tar-{k}':tar_bytes([('good',b'1'),(v,b'2')]) for k,v in NAMES.items()},
    'zip-link':zip_bytes([('good',b'1'),(zip_kind('l', stat.S_IFLNK),b'/etc')]), 'zip-fifo':zip_bytes([('good',b'1'),(zip_kind('l', stat.S_IFIFO),b'')]), 'zip-device':zip_bytes([('good',b'1'),(zip_kind('l', stat.S_IFCHR),b'')]),
    'tar-link':tar_bytes([('good',b'1'),(tar_kind('l', tarfile.SYMTYPE, '/etc'),b'')]), 'tar-inner-link':tar_bytes([('good',b'1'),(tar_kind('l', tarfile.SYMTYPE, '.'),b''),('l/x',b'2')]),
    'tar-hard':tar_bytes([('good',b'1'),(tar_kind('l', tarfile.LNKTYPE, '../../x'),b'')]), 'tar-fifo':tar_bytes([('good',b'1'),(tar_kind('l', tarfile.FIFOTYPE),b'')]),
    'tar-char':tar_bytes([('good',b'1'),(tar_kind('l', tarfile.CHRTYPE),b'')]), 'tar-block':tar_bytes([('good',b'1'),(tar_kind('l', tarfile.BLKTYPE),b'')]),
    'tar-twice':tar_bytes([('good',b'1'),('good',b'2')]), 'tar-dot-twice':tar_bytes([('good',b'1'),('./good',b'2')]), 'tar-file-and-folder':tar_bytes([('good',b'1'),('good/x',b'2')]), 'zip-slashes':zip_bytes([('good',b'1'),('.//good',b'2')]),
    'tar-nothing':tar_bytes([(tar_kind('d', tarfile.DIRTYPE),b'')]), 'zip-nothing':zip_bytes({})}

def around(p): return {o.relative_to(p).as_posix() for o in p.rglob('*')}

@pytest.mark.parametrize('kind', HOSTILE)
def test_hostile_archives(kind, tmp_path):
    "Refused, and not one byte written outside or inside"
    home = tmp_path/'a/b'; home.mkdir(parents=True)
    (home/'x.arc').write_bytes(HOSTILE[kind])
    before = around(tmp_path)
    with pytest.raises(DataError) as e: safe_extract(home/'x.arc', home/'out')
    assert around(tmp_path)==before and 'x.arc' in str(e.value)

def test_hostile_archive_from_a_server(web, tmp_path):
    b = HOSTILE['tar-link']
    web.acts['/f'] = serve(b)
    with pytest.raises(DataError, match='a link or a device'): fetch(Remote(f'{web.url}/f', sha(b), 'f.tar', archive='tar'), tmp_path)
    assert not (tmp_path/'set').exists()

@pytest.mark.parametrize('mode', ['zip','w','w:gz','w:bz2','w:xz'])
def test_bombs(mode, tmp_path):
    zeros = {'a':bytes(2_000_000), 'b':b'1'}
    (tmp_path/'x').write_bytes(zip_bytes(zeros, zipfile.ZIP_DEFLATED) if mode=='zip' else tar_bytes(zeros, mode))
    with pytest.raises(DataError, match='more than'): safe_extract(tmp_path/'x', tmp_path/'out', max_bytes=1_999_999)
    with pytest.raises(DataError, match='more than'): safe_extract(tmp_path/'x', tmp_path/'out', max_files=1)
    assert not (tmp_path/'out').exists()
    assert files(safe_extract(tmp_path/'x', tmp_path/'out', max_bytes=2_000_001, max_files=2))==['a','b']

def test_zip_that_lies_about_its_size(tmp_path):
    b = bytearray(zip_bytes({'a':bytes(1_000_000)}, zipfile.ZIP_DEFLATED))
    at = b.index(b'PK\x01\x02')
    b[at+24:at+28] = struct.pack('<I', 10)
    (tmp_path/'x.zip').write_bytes(b)
    with pytest.raises(DataError): safe_extract(tmp_path/'x.zip', tmp_path/'out')
    assert not (tmp_path/'out').exists()

def test_bytes_are_counted(tmp_path):
    with pytest.raises(DataError, match='larger than the archive says'): D._unpack('x', {'a':(10, lambda: io.BytesIO(bytes(11)))}, tmp_path, D._bar('', 1, False))

def test_password(tmp_path):
    b = bytearray(zip_bytes({'a':b'1'}))
    for sig,off in ((b'PK\x03\x04',6),(b'PK\x01\x02',8)): b[b.index(sig)+off] |= 1
    (tmp_path/'x.zip').write_bytes(b)
    with pytest.raises(DataError, match='password'): safe_extract(tmp_path/'x.zip', tmp_path/'out')

@pytest.mark.parametrize('mode', ['zip','w','w:gz','w:bz2','w:xz'])
@pytest.mark.parametrize('keep', [0,.3,.7,.98])
def test_damaged_archives(mode, keep, tmp_path):
    b = zip_bytes({'a':BODY, 'b':b'1'}, zipfile.ZIP_DEFLATED) if mode=='zip' else tar_bytes({'a':BODY, 'b':b'1'}, mode)
    (tmp_path/'x').write_bytes(b[:int(len(b)*keep)])
    try: out = safe_extract(tmp_path/'x', tmp_path/'out')
    except DataError: assert not (tmp_path/'out').exists() and around(tmp_path)=={'x'}
    else: assert keep==.98 and (out/'a').read_bytes()==BODY and (out/'b').read_bytes()==b'1' # a plain tar ends in blanks

def test_flipped_bit(tmp_path):
    b = bytearray(zip_bytes({'a':BODY}))
    b[len(BODY)//2] ^= 1
    (tmp_path/'x.zip').write_bytes(b)
    with pytest.raises(DataError, match='damaged'): safe_extract(tmp_path/'x.zip', tmp_path/'out')
    assert around(tmp_path)=={'x.zip'}

def test_not_an_archive(tmp_path):
    (tmp_path/'x').write_text('hello')
    with pytest.raises(DataError, match='damaged'): safe_extract(tmp_path/'x', tmp_path/'out')
    with pytest.raises(DataError, match='no file of this name'): safe_extract(tmp_path/'y', tmp_path/'out')
    zipped(tmp_path/'z', {'1':b'1'}); (tmp_path/'full').mkdir(); (tmp_path/'full/1').write_text('mine')
    with pytest.raises(DataError, match='not made here'): safe_extract(tmp_path/'z', tmp_path/'full')
    assert (tmp_path/'full/1').read_text()=='mine'

def test_modes_and_owners_stay_in_the_archive(tmp_path):
    o = tarfile.TarInfo('run.sh'); o.mode = 0o4777
    (tmp_path/'x.tar').write_bytes(tar_bytes([(o,b'#!')]))
    assert not (safe_extract(tmp_path/'x.tar', tmp_path/'out')/'run.sh').stat().st_mode & 0o7111

part = st.text('ab1.é _-', min_size=1, max_size=4).filter(lambda o: o.strip('.') and o==o.strip())
@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.lists(part, min_size=1, max_size=3).map('/'.join), st.binary(max_size=40), min_size=1, max_size=6), st.sampled_from(['zip','w','w:gz']))
def test_round_trip(tmp_path_factory, content, mode):
    if any(a!=b and b.startswith(a+'/') for a in content for b in content): return
    tmp = tmp_path_factory.mktemp('r')
    (tmp/'x').write_bytes(zip_bytes(content) if mode=='zip' else tar_bytes(content, mode))
    out = safe_extract(tmp/'x', tmp/'out')
    assert {o:(out/o).read_bytes() for o in files(out)}==content

# --- git -----------------------------------------------------------------------------------------------
def test_trees_as_git_makes_them(tmp_path):
    if not shutil.which('git'): pytest.skip('git is not here')
    def git(*a): return subprocess.run(['git','-c','core.fileMode=true','-c','core.autocrlf=false',*a], cwd=tmp_path, env={**os.environ, 'GIT_CONFIG_GLOBAL':os.devnull, 'GIT_CONFIG_NOSYSTEM':'1'}, capture_output=True, text=True, check=True).stdout.strip()
    for k,v in {'a.b':b'1', 'a/x':b'2', 'a0':b'3', 'a/b/c.png':BODY, 'é':b'', 'run':b'#!'}.items():
        (tmp_path/k).parent.mkdir(parents=True, exist_ok=True); (tmp_path/k).write_bytes(v)
    (tmp_path/'run').chmod(0o755); os.symlink('a/x', tmp_path/'link'); (tmp_path/'empty/deep').mkdir(parents=True)
    git('init','-q'); git('add','.')
    assert git_tree_sha1(tmp_path)==git('write-tree')
    assert git_tree_sha1(tmp_path/'a')==git('write-tree','--prefix=a/')
    assert git_blob_sha1(tmp_path/'a/b/c.png')==git_blob_sha1(BODY)==git('hash-object','a/b/c.png')

# --- the list ------------------------------------------------------------------------------------------
def test_sources_are_sound():
    for name,rs in SOURCES.items():
        if isinstance(rs, str): assert rs; continue
        assert len({r.file for r in rs})==len(rs) and all(r.url.startswith('https://') for r in rs), name
        assert all(r.sha256 is None or r.size for r in rs), 'a stated sum comes with a stated size'
        assert all(len(t)==40 for r in rs for _,t in r.trees)
    t = sources()
    assert list(t.name)==list(SOURCES) and ((t.files>0)!=(t.why_not!='')).all() and t.notna().all().all()

def test_get_data_says_why_not(tmp_path):
    for name,o in SOURCES.items():
        if isinstance(o, str):
            with pytest.raises(DataError, match=o[:20]): get_data(name, tmp_path)
    with pytest.raises(ArgumentError, match='idrid-fundus'): get_data('nothing', tmp_path)
    assert not files(tmp_path)

def test_names_are_those_of_load():
    from medattn_nb.data.datasets import available
    assert set(SOURCES)<=set(available().name)

def test_a_repository_from_server_to_loader(web, tmp_path, monkeypatch):
    "The layout that is fetched is one that the loader knows; the stamp in it does no harm"
    from medattn_nb.data.datasets import check, load
    from PIL import Image
    b = io.BytesIO(); Image.new('L', (9,9), 7).save(b, 'PNG')
    names = {('COVID','train'):'a.png', ('COVID','val'):'b.png', ('COVID','test'):'c.png', ('NonCOVID','train'):'1.png', ('NonCOVID','val'):'2.png', ('NonCOVID','test'):'3.jpg'}
    repo = {f'x-1/Images/CT_{c}/{n}':b.getvalue() for (c,_),n in names.items()} | {f'x-1/Data-split/{c}/{s}CT_{c}.txt':n.encode() for (c,s),n in names.items()} | {'x-1/README.md':b'no', 'x-1/code.py':b'no'}
    web.acts['/f'] = serve(zip_bytes(repo))
    safe_extract(zipped(tmp_path/'x.zip', repo), tmp_path/'x', 1)
    r = Remote(f'{web.url}/f', None, 'repo.zip', archive='zip', strip=1, keep=('Images/*.png','Images/*.jpg','Data-split/*.txt'), trees=(('Images',git_tree_sha1(tmp_path/'x/Images')),))
    monkeypatch.setitem(SOURCES, 'covid-ct', (r,))
    d = get_data('covid-ct', tmp_path/'data', progress=False)
    assert not (d/'README.md').exists() and len(load('covid-ct', tmp_path/'data'))==6 and not len(check(d))

def test_get_data_hands_on(web, tmp_path, monkeypatch):
    web.acts['/f'] = serve(BODY)
    monkeypatch.setitem(SOURCES, 'toy', (remote(web),))
    assert (get_data('toy', tmp_path, progress=False)/'f.bin').is_file()
