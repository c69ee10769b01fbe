"""The page's style sheet: light or dark as the reader's system, without external resources."""

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #16181d; --muted: #667080;
  --line: #e3e6eb; --teacher: #3b6fb6; --student: #d9480f; --raw: #98a1ad; --wash: #fff4ec; }
@media (prefers-color-scheme: dark) { :root { --page: #101216; --card: #191c22; --ink: #eceef2;
  --muted: #98a2b3;
  --line: #2c313a; --teacher: #7fb0f0; --student: #ff8a4c; --raw: #6f7a8a; --wash: #2a1f18; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 48px 24px 80px; }
header { margin-bottom: 32px; }
h1 { font-size: 2.3rem; line-height: 1.15; letter-spacing: -0.025em; margin: 0 0 12px; }
h2 { font-size: 1.3rem; letter-spacing: -0.015em; margin: 0 0 4px; }
h3 { font-size: 0.95rem; margin: 0 0 10px; }
p { margin: 0 0 14px; max-width: 74ch; }
.lead { font-size: 1.12rem; color: var(--muted); }
.lead b { color: var(--ink); font-weight: 600; }
.notice { border-left: 4px solid var(--student); background: var(--wash); padding: 10px 14px; font-weight: 600; }
.note { color: var(--muted); font-size: 0.93rem; }
.panel { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 26px 28px;
  margin: 0 0 22px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 16px;
  margin: 0 0 22px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 20px 22px; }
.card h3 { color: var(--muted); font-weight: 500; margin: 0 0 6px; }
.card .big { font-size: 2.35rem; font-weight: 680; letter-spacing: -0.035em; line-height: 1.1;
  font-variant-numeric: tabular-nums; }
.card .big span { font-size: 1.15rem; color: var(--muted); font-weight: 500; letter-spacing: 0;
  margin-left: 4px; }
.card p { margin: 8px 0 0; font-size: 0.88rem; color: var(--muted); line-height: 1.45; }
.card.first .big { color: var(--student); }
.scroll { overflow-x: auto; margin: 0 -8px; padding: 0 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 9px 12px; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { font-size: 0.85rem; font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 500; }
tbody tr:last-child > * { border-bottom: 0; }
tfoot th, tfoot td { border-top: 1px solid var(--line); border-bottom: 0; font-weight: 600; }
small { display: block; color: var(--muted); font-size: 0.74rem; font-weight: 400; white-space: nowrap; }
thead small { white-space: normal; line-height: 1.3; }
.numbers { font-size: 0.9rem; }
.numbers th, .numbers td { padding: 9px; }
.numbers td b { font-weight: 600; }
.numbers tbody th { white-space: nowrap; }
.numbers tr.student > * { background: var(--wash); }
.mark { background: var(--student); color: var(--card); border-radius: 999px; font-size: 0.72rem;
  font-weight: 600;
  padding: 2px 9px; margin-left: 10px; }
.samples th[scope=col] { border-bottom-width: 3px; }
.samples th.teacher { border-bottom-color: var(--teacher); }
.samples th.student { border-bottom-color: var(--student); }
.samples th.raw { border-bottom-color: var(--raw); }
.samples th, .samples td { vertical-align: middle; padding: 6px 8px; }
.samples tbody th { font-size: 0.86rem; color: var(--muted); min-width: 118px; max-width: 170px;
  line-height: 1.3; }
.tiles { display: flex; gap: 3px; }
.tiles img { image-rendering: pixelated; height: 40px; width: auto; border-radius: 4px; display: block;
  background: var(--line); }
.wide .tiles img { height: 32px; }
.stages .bar { width: 36%; vertical-align: middle; }
.stages .bar i { display: block; height: 9px; border-radius: 5px; background: var(--teacher);
  min-width: 3px; }
figure { margin: 18px 0 0; }
figure svg { width: 100%; height: auto; display: block; }
figure + figure { margin-top: 30px; }
figcaption { color: var(--muted); font-size: 0.86rem; margin-top: 8px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); gap: 30px 44px;
  margin-top: 18px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 16px; margin: 0; font-size: 0.88rem; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
code { font: 0.86em ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
details summary { cursor: pointer; color: var(--muted); margin: 14px 0 8px; }
footer { color: var(--muted); font-size: 0.86rem; padding: 8px 4px; }
@media print { body { background: #fff; } .panel, .card { break-inside: avoid; } }
"""
