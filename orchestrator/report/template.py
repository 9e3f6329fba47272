"""Template: the page of a report, in Jinja's language; in a Python file, so that it travels with a job."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --text: #1b1f24; --faint: #57606a; --page: #ffffff; --panel: #f6f8fa; --line: #d0d7de; --strong: #0b5394; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --faint: #9da7b3; --page: #0d1117; --panel: #161b22; --line: #30363d; --strong: #79b8ff; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem clamp(0.8rem, 3vw, 2.5rem) 3rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.15rem; font-weight: 600; margin: 0.6rem 0 0; color: var(--faint); overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 0.6rem; }
h3 { font-size: 1rem; margin: 0 0 0.3rem; }
.answer { font-size: clamp(1.2rem, 2.6vw, 1.7rem); line-height: 1.35; font-weight: 650; margin: 0.4rem 0 0.3rem; overflow-wrap: anywhere; }
.faint, figcaption, .notes { color: var(--faint); font-size: 0.9rem; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.4rem 0.7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 11rem; }
thead th { background: var(--panel); font-weight: 600; }
tbody tr:last-child td { border-bottom: 0; }
tr.best td { font-weight: 700; color: var(--strong); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.2rem; }
figure { max-width: 46rem; margin: 0; padding: 0.8rem; border: 1px solid var(--line); border-radius: 6px; break-inside: avoid; }
figure svg { width: 100%; height: auto; max-height: 46rem; display: block; }
figure svg text { fill: currentColor; font-family: inherit; }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 0.7rem; margin-bottom: 1rem; }
.panel { padding: 0; border: 0; }
.panel img { width: 100%; display: block; border-radius: 4px; background: #000; }
.legend { margin: -0.6rem 0 1.2rem; font-size: 0.85rem; color: var(--faint); }
.legend span { margin-right: 0.9rem; white-space: nowrap; }
.legend i { display: inline-block; width: 0.8em; height: 0.8em; margin-right: 0.35em; border-radius: 2px; print-color-adjust: exact; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: 1.2rem; }
dl { margin: 0; display: grid; grid-template-columns: auto 1fr; gap: 0.15rem 0.8rem; font-size: 0.92rem; }
dt { color: var(--faint); }
dd { margin: 0; overflow-wrap: anywhere; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 6px; padding: 0.7rem; overflow-x: auto; font-size: 0.88rem; }
ul { padding-left: 1.2rem; margin: 0.5rem 0; }
li { overflow-wrap: anywhere; }
section + article, article + article { margin-top: 3rem; padding-top: 1rem; border-top: 3px solid var(--line); }
@media print {
  :root { --text: #000; --faint: #444; --page: #fff; --panel: #f2f2f2; --line: #bbb; --strong: #000; color-scheme: light; }
  body { max-width: none; padding: 0; font-size: 11px; }
  .wide { overflow: visible; border: 0; }
  th, td { white-space: normal; padding: 0.25rem 0.4rem; }
  .charts { grid-template-columns: 1fr 1fr; }
  h2 { break-after: avoid; }
}
</style>
</head>
<body>
{% macro table(heading, rows, best) %}
<div class="wide" tabindex="0" role="region" aria-label="Table of scores">
<table>
<thead><tr>{% for name in heading %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}<tr{% if best and loop.first %} class="best"{% endif %}>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table>
</div>
{% endmacro %}
{% macro figure(chart) %}
<figure role="img" aria-label="{{ chart.heading }}. {{ chart.words }}">
<h3>{{ chart.heading }}</h3>
{{ chart.svg | safe }}
<figcaption>{{ chart.words }}</figcaption>
</figure>
{% endmacro %}
{% if over %}<section><h1>{{ title }}</h1>
<p class="answer">{{ over.answer }}</p>
{% if over.chart %}{{ table(over.heading, over.rows, false) }}
<ul class="notes">{% for note in over.notes %}<li>{{ note }}</li>{% endfor %}</ul>
<div class="charts">{{ figure(over.chart) }}</div>
{% endif %}
</section>{% endif %}
{% for report in reports %}<article>
<h1>{{ report.title }}</h1>
<p class="answer">{{ report.answer }}</p>
<p class="faint">{{ report.about }}</p>

<h2>Table</h2>
{{ table(report.heading, report.rows, report.best) }}
<ul class="notes">{% for note in report.notes %}<li>{{ note }}</li>{% endfor %}</ul>

{% if report.charts %}<h2>Figures</h2>
<div class="charts">
{% for chart in report.charts %}{{ figure(chart) }}
{% endfor %}</div>
{% endif %}
{% if report.cases %}<h2>Cases</h2>
<p class="faint">Each is the slice with the most labels or boxes, or the picture, as the network of each row's first run sees it; segmentations have the case's mean score over the row's runs. Rows that would take more than a minute are left out.</p>
{% for case in report.cases %}<h3>{{ case.heading }}</h3>
<div class="strip">{% for panel in case.panels %}<figure class="panel"><img src="{{ panel.image }}" alt="{{ case.heading }}, {{ panel.words }}"><figcaption>{{ panel.words }}</figcaption></figure>
{% endfor %}</div>
<p class="legend">{% for name, colour in case.legend %}<span><i style="background:{{ colour }}"></i>{{ name }}</span>
{% endfor %}</p>
{% endfor %}
{% endif %}
<h2>What failed or was left out</h2>
{% if report.failures %}<ul>{% for failure in report.failures %}<li>{{ failure }}</li>{% endfor %}</ul>
{% else %}<p>Each run of these rows has a score.</p>
{% endif %}
{% if report.data %}<h2>Data</h2>
<div class="facts">
{% for set in report.data %}<div><h3>{{ set.heading }}</h3>
<dl>{% for name, value in set.facts %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl></div>
{% endfor %}</div>
{% endif %}
<h2>How it was made, and how to run it again</h2>
<dl>{% for name, value in report.made %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
<pre>{% for command in report.commands %}{{ command }}
{% endfor %}</pre>
</article>
{% endfor %}
</body>
</html>
"""
