"""The style of a report: light and dark, from 360 pixels up, and on paper."""

from __future__ import annotations

from typing import Final

# Text has a contrast of 4.5 or more against what it stands on, marks of figures 3 or more, in both schemes.
CSS: Final = """
:root {
  color-scheme: light dark;
  --ground: #ffffff; --raised: #f4f6f8; --ink: #1b2430; --faint: #566273; --line: #d5dbe2; --link: #0b57a4;
  --pass: #14653a; --pass-ground: #def3e5; --fail: #9b1c24; --fail-ground: #fbe3e4;
  --inconclusive: #7a4a00; --inconclusive-ground: #fdf0d2; --unavailable: #4b5665;
  --unavailable-ground: #e8ecf0;
  --s0: #1f62b0; --s1: #b4530c; --s2: #1c7d4c; --s3: #7b3fa3; --s4: #a8323c; --s5: #0b7184; --s6: #6d6a0c;
  --s7: #b02a77;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --ground: #12171e; --raised: #1b222c; --ink: #e8edf3; --faint: #a3b0c0; --line: #37424f;
    --link: #8cbcf5;
    --pass: #86dfab; --pass-ground: #12361f; --fail: #ffa7ac; --fail-ground: #46171b;
    --inconclusive: #f7cd78; --inconclusive-ground: #3d2c08; --unavailable: #b9c3cf;
    --unavailable-ground: #2a333e;
    --s0: #7fb4f5; --s1: #f2a766; --s2: #70d3a1; --s3: #c79cec; --s4: #f28d96; --s5: #60cbdc; --s6: #d0c65c;
    --s7: #f391c6;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0; background: var(--ground); color: var(--ink); font: 1rem/1.55 system-ui, sans-serif;
  overflow-wrap: break-word; }
header, nav, main, footer { max-width: 66rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .35rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .7rem; padding-top: .9rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; border-radius: 2px; }
.skip { position: absolute; left: -999rem; background: var(--ground); padding: .5rem 1rem; }
.skip:focus { left: .5rem; top: .5rem; }
.faint, figcaption { color: var(--faint); }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; padding: 0; margin: .9rem 0 0; }
nav a { display: inline-block; padding: .2rem 0; }
.headline { font-size: 1.12rem; font-weight: 600; }
.caution { border-left: 4px solid var(--inconclusive); background: var(--inconclusive-ground);
  max-width: 50rem;
  color: var(--inconclusive); padding: .5rem .9rem; margin: .8rem 0; }
.sentences { list-style: none; padding: 0; margin: 1rem 0; display: grid; gap: .5rem; }
.sentences li { background: var(--raised); border-radius: .5rem; padding: .6rem .9rem; display: grid;
  grid-template-columns: 7.2rem 1fr; gap: .2rem .8rem; align-items: start; }
.outcome { display: inline-block; border-radius: 1rem; padding: .05rem .65rem; font-weight: 600;
  font-size: .88rem;
  justify-self: start; white-space: nowrap; }
.pass { color: var(--pass); background: var(--pass-ground); }
.fail { color: var(--fail); background: var(--fail-ground); }
.inconclusive { color: var(--inconclusive); background: var(--inconclusive-ground); }
.unavailable { color: var(--unavailable); background: var(--unavailable-ground); }
.wide { overflow-x: auto; margin: .8rem 0; min-width: 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--faint); padding-bottom: .35rem; }
caption span { display: block; position: sticky; left: 0; max-width: min(46rem, calc(100vw - 2.5rem)); }
th, td { padding: .35rem .7rem .35rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; color: var(--faint); font-weight: 600; }
tbody th { font-weight: 600; white-space: nowrap; position: sticky; left: 0; background: var(--ground); }
td:not(.figures) { min-width: 5rem; }
.pairs td { min-width: 0; }
td.figures { white-space: nowrap; }
th.figures, td.figures { text-align: right; }
.conditions tbody th { white-space: normal; min-width: 9rem; }
.conditions td { min-width: 0; overflow-wrap: anywhere; }
.pairs { display: grid; gap: 0 2.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); }
figure { margin: 1rem 0; }
figure svg { display: block; width: 100%; min-width: 34rem; max-width: 48rem; height: auto; }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif; }
svg text.note { fill: var(--faint); font-size: 12px; }
svg path { fill: none; }
.grid { stroke: var(--line); }
.limit { stroke: var(--fail); stroke-dasharray: 5 4; }
.leader { stroke: var(--faint); stroke-width: .75; }
.whisker { stroke-width: 2; }
.median { stroke: var(--ink); stroke-width: 2; }
svg .eager { fill: var(--faint); }
SERIES
svg .whisker { fill: none; }
svg .area { stroke: none; }
.flips { list-style: none; padding: 0; margin: .6rem 0; display: grid; gap: .7rem;
  grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); }
.flips li { background: var(--raised); border-radius: .5rem; padding: .6rem; font-size: .86rem;
  line-height: 1.4; }
.flips img { display: block; width: 4rem; height: 4rem; object-fit: contain; image-rendering: pixelated;
  margin-bottom: .4rem; background: var(--ground); }
.flips dl { margin: 0; display: grid; grid-template-columns: auto 1fr; gap: 0 .5rem; }
.flips dt { color: var(--faint); }
.flips dd { margin: 0; overflow-wrap: anywhere; }
pre { background: var(--raised); border-radius: .5rem; padding: .8rem 1rem; overflow-x: auto;
  max-width: 60rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
footer { color: var(--faint); padding-top: 2rem; padding-bottom: 2rem; font-size: .9rem; }
@media (max-width: 34rem) {
  .sentences li { grid-template-columns: 1fr; }
  header, nav, main, footer { padding-left: 1rem; padding-right: 1rem; }
}
@media print {
  :root { color-scheme: light; }
  body { font-size: 10pt; }
  header, nav, main, footer { max-width: none; padding: 0; }
  nav, .skip { display: none; }
  h2 { break-after: avoid; }
  figure, tr, .sentences li, .flips li { break-inside: avoid; }
  .wide { overflow: visible; }
  tbody th { position: static; white-space: normal; }
  td:not(.figures) { min-width: 0; }
  table { font-size: 8.5pt; }
  figure svg { min-width: 0; max-width: 16cm; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
""".replace("SERIES", "\n".join(f"svg .s{i} {{ fill: var(--s{i}); stroke: var(--s{i}); }}" for i in range(8)))
