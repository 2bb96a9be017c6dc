--- style.lua - the style sheet of the report's page: light and dark, narrow and wide.
return [[
:root{--ink:#16262b;--soft:#5a6e75;--faint:#8fa1a7;--paper:#f4f7f7;--card:#fff;--line:#dde5e7;--accent:#0b6b84;--accent2:#c4622d;
--good:#1e7f5c;--goodbg:#e2f3ec;--bad:#b3402e;--badbg:#fae8e4;--c0:#b3402e;--c1:#bf5a3d;--c2:#ca744d;--c3:#d58e5f;--c4:#dea976;
--c5:#e3c48f;
--c6:#c3c48d;--c7:#9dbd89;--c8:#75b183;--c9:#4a9d75;--c10:#1e7f5c;--cx:#b8c4c8;
--mono:ui-monospace,"SF Mono","DejaVu Sans Mono",Menlo,Consolas,monospace}
@media(prefers-color-scheme:dark){:root{--ink:#e3ecee;--soft:#9db0b6;--faint:#6f8389;--paper:#0d1518;--card:#142025;--line:#25353b;
--accent:#4fb6d0;
--accent2:#e8915e;--good:#54c296;--goodbg:#12342a;--bad:#ee8570;--badbg:#3d1d18;--c0:#d9604c;--c1:#d2704f;--c2:#cb8153;--c3:#c39158;
--c4:#b99f60;
--c5:#a9a767;--c6:#93ac6c;--c7:#7cb073;--c8:#67b57d;--c9:#55ba88;--c10:#3fbf93;--cx:#45565c}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;
-webkit-font-smoothing:antialiased}
main{max-width:1040px;margin:0 auto;padding:40px 24px 64px}
header{margin-bottom:28px}
.brand{margin:0;color:var(--accent);font-weight:600;font-size:14px;letter-spacing:.02em}
h1{margin:2px 0 10px;font-size:34px;line-height:1.15;letter-spacing:-.02em;overflow-wrap:anywhere}
h2{margin:0 0 14px;font-size:17px;letter-spacing:-.005em;overflow-wrap:anywhere}
h2 small,figcaption small{font-weight:400;color:var(--soft);font-size:14px}
h3{margin:16px 0 6px;font-size:14px;color:var(--soft);font-weight:600}
h4{margin:12px 0 4px;font-size:12.5px;color:var(--soft);font-weight:600}
small,.small{font-size:13px;color:var(--soft)}
.small{margin:10px 0 0}
.note{margin:10px 0 0;color:var(--soft);max-width:70ch;overflow-wrap:anywhere}
.facts{list-style:none;margin:0;padding:0;display:flex;flex-wrap:wrap;gap:4px 18px;color:var(--soft);font-size:14px;
font-variant-numeric:tabular-nums}
section{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:20px 22px;margin:0 0 18px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(210px,1fr));gap:14px;background:none;border:0;padding:0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:16px 20px}
.tile h2{margin:0;font-size:14px;color:var(--soft);font-weight:600}
.tile .big{margin:2px 0 0;font-size:38px;line-height:1.15;font-weight:650;letter-spacing:-.03em;color:var(--accent);
font-variant-numeric:tabular-nums}
.tile .small{margin:2px 0 0;font-variant-numeric:tabular-nums}
.tile .about{margin-top:12px;max-width:30ch}
.tile.wide{grid-column:1/-1;display:grid;grid-template-columns:minmax(180px,240px) 1fr;gap:24px}
.tile figcaption{text-align:right;margin:2px 0 12px}
.row{display:grid;grid-template-columns:minmax(110px,250px) 1fr 216px;gap:16px;align-items:center;min-height:30px}
.row .label{overflow-wrap:anywhere;line-height:1.25;font-size:15px}
.row .value{font-variant-numeric:tabular-nums;font-size:15px;white-space:nowrap}
.rows.one .row{grid-template-columns:0 1fr 0;gap:0}
svg{display:block;width:100%;overflow:visible}
svg path{fill:none;vector-effect:non-scaling-stroke;stroke-linecap:round}
.interval{height:30px}
.rows+.rows{margin-top:18px}
.grid{stroke:var(--line);stroke-width:1}
.range{stroke:var(--accent);stroke-width:5;opacity:.28}
.dot{stroke:var(--accent);stroke-width:11}
.axis{min-height:20px}
.ticks{position:relative;height:18px}
.ticks i,.xs i,.ys i{position:absolute;font-style:normal;font-size:12px;color:var(--faint);white-space:nowrap;
font-variant-numeric:tabular-nums}
.ticks i,.xs i{transform:translateX(-50%)}
.ys i{right:8px;transform:translateY(50%)}
figure{margin:0}
figcaption{font-size:15px;margin-bottom:10px}
.frame{display:grid;grid-template-columns:48px 1fr;grid-template-rows:190px 22px}
.ys{position:relative}
.xs{grid-column:2;position:relative;top:5px}
.curves{height:190px}
.curve{stroke-width:2.5}
.band{stroke:none;opacity:.13}
.curves .dot{stroke-width:8}
.curve.pass,.dot.pass{stroke:var(--accent)}.band.pass{fill:var(--accent)!important}
.curve.maj,.dot.maj{stroke:var(--accent2)}.band.maj{fill:var(--accent2)!important}
.key{margin-left:14px;color:var(--soft);font-size:13px;white-space:nowrap}
.key:before{content:"";display:inline-block;width:14px;height:4px;border-radius:2px;margin-right:6px;vertical-align:3px;
background:var(--accent)}
.key.maj:before{background:var(--accent2)}
.histogram{height:120px}
.bar{fill:var(--accent)}
.cells{display:flex;flex-wrap:wrap;gap:3px}
.c{display:inline-block;width:14px;height:14px;border-radius:3px;background:var(--cx)}
.small .c{width:11px;height:11px;margin-right:2px;vertical-align:-1px}
a.c:hover,a.c:focus{outline:2px solid var(--ink);outline-offset:1px}
.c0{background:var(--c0)}.c1{background:var(--c1)}.c2{background:var(--c2)}.c3{background:var(--c3)}.c4{background:var(--c4)}
.c5{background:var(--c5)}
.c6{background:var(--c6)}.c7{background:var(--c7)}.c8{background:var(--c8)}.c9{background:var(--c9)}.c10{background:var(--c10)}
details{border-top:1px solid var(--line);padding:9px 0;scroll-margin-top:12px}
details:target{background:color-mix(in srgb,var(--accent) 7%,transparent)}
summary{cursor:pointer;display:flex;align-items:center;gap:10px;list-style:none;min-width:0}
summary::-webkit-details-marker{display:none}
summary b{font-weight:600;white-space:nowrap;overflow:hidden;text-overflow:ellipsis;max-width:45%;flex:none}
summary .c{flex:none}
.first{flex:1 1 0;color:var(--soft);white-space:nowrap;overflow:hidden;text-overflow:ellipsis;min-width:0}
.first,summary b,.label,pre,h1{unicode-bidi:isolate}
pre{margin:0;padding:10px 12px;background:var(--paper);border-radius:8px;font:13px/1.5 var(--mono);white-space:pre-wrap;
overflow-wrap:anywhere;max-height:420px;overflow:auto}
.sample{margin-top:14px;padding-left:14px;border-left:3px solid var(--line)}
.chips{margin:0;display:flex;flex-wrap:wrap;gap:6px;align-items:center}
.chips small{font-family:var(--mono);overflow-wrap:anywhere}
.chip{font-size:12.5px;padding:2px 9px;border-radius:20px;background:var(--line);color:var(--soft);font-variant-numeric:tabular-nums}
.chip.good{background:var(--goodbg);color:var(--good)}.chip.bad{background:var(--badbg);color:var(--bad)}
footer{color:var(--faint);font-size:13px;max-width:80ch}
@media(max-width:800px){main{padding:24px 14px 48px}h1{font-size:27px}section{padding:16px 14px}.tile .big{font-size:32px}
.row{grid-template-columns:1fr auto;gap:0 10px;padding:5px 0}.row svg,.row .ticks{grid-column:1/3;grid-row:2}.row .value{font-size:14px}
.row.axis{padding:0}
.interval{height:22px}.rows{padding:0 4px}.tile.wide{grid-template-columns:1fr;gap:14px}.tile figcaption{text-align:left}
summary b{max-width:60%}}
@media print{body{background:#fff}section,.tile{break-inside:avoid}}
]]
