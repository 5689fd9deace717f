// ipywidgets draws slider handles, boxes and readouts without any name for screen readers.
const CONTROLS = '[role=slider], .widget-readout, input, select, textarea, button';

function nameOf(control) {
  const box = control.closest('.jupyter-widgets');
  const label = box?.querySelector(':scope > .widget-label');
  const shown = label && label.style.display !== 'none' && label.textContent.trim();
  return shown || box?.title || label?.title || control.placeholder || control.title || '';
}

function nameAll(root, name) {
  root.setAttribute('role', 'region');
  root.setAttribute('aria-label', name);
  for (const status of root.querySelectorAll('.kit-status')) status.setAttribute('role', 'status');
  for (const control of root.querySelectorAll(CONTROLS)) {
    if (control.tagName === 'BUTTON' && /\p{L}/u.test(control.textContent)) continue;
    const found = nameOf(control);
    // a checkbox's own label stands around it
    const labelled = [...(control.labels ?? [])].some((label) => label.textContent.trim());
    if (found && !labelled && control.getAttribute('aria-label') !== found)
      control.setAttribute('aria-label', found);
    if (control.matches('.widget-readout')) control.setAttribute('role', 'textbox');
  }
}

export default {
  render({ model, el }) {
    let observer, waiting = 0;
    const start = () => {
      const root = el.closest('.kit-panel');
      if (!root) { waiting = requestAnimationFrame(start); return; }
      const again = () => { waiting = 0; nameAll(root, model.get('label')); };
      observer = new MutationObserver(() => { waiting ||= requestAnimationFrame(again); });
      const what = { childList: true, subtree: true, attributeFilter: ['title'] };
      observer.observe(root, what);
      again();
    };
    start();
    return () => { observer?.disconnect(); cancelAnimationFrame(waiting); };
  },
};
