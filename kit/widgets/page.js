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
  if (!root.classList.contains('kit-picks')) return;
  for (const latent of root.querySelectorAll('[data-latent]:not([role])')) {
    latent.setAttribute('role', 'link');
    latent.tabIndex = 0;
  }
}

// whether a page shows something of this class that a notebook saves: what a widget holds is not
const kept = (mark) =>
  [...document.getElementsByClassName(mark)].some((shown) => !shown.closest('.jupyter-widgets'));
const SIGNALS = ['disposed', 'statusChanged', 'connectionStatusChanged'];

export default {
  initialize({ model }) {
    model.on('change:frozen', async () => {
      const mark = model.get('frozen');
      for (let i = 0; i < 30 && !kept(mark); i++) await new Promise((go) => setTimeout(go, 100));
      model.set('found', `${kept(mark) ? 'yes' : 'no'} ${mark}`);
      model.save_changes();
    });
  },
  render({ model, el }) {
    let observer, root, waiting = 0, picks = 0;
    const pick = (event) => {
      const latent = event.target.closest?.('.kit-picks [data-latent]');
      if (!latent || (event.type === 'keydown' && event.key !== 'Enter')) return;
      model.set('picked', `${latent.dataset.latent} ${++picks}`);
      model.save_changes();
    };
    const kernel = model.widget_manager?.kernel;
    // a restart is seen by ipywidgets itself, which marks every widget of the old kernel
    const answers = () => root?.classList.toggle('kit-gone',
      kernel.isDisposed || kernel.status === 'dead' || kernel.connectionStatus !== 'connected');
    for (const name of SIGNALS) kernel?.[name]?.connect(answers);
    const start = () => {
      root = el.closest('.kit-panel');
      if (!root) { waiting = requestAnimationFrame(start); return; }
      const again = () => { waiting = 0; nameAll(root, model.get('label')); };
      observer = new MutationObserver(() => { waiting ||= requestAnimationFrame(again); });
      const what = { childList: true, subtree: true, attributeFilter: ['title'] };
      observer.observe(root, what);
      for (const kind of ['click', 'keydown']) root.addEventListener(kind, pick);
      again();
    };
    start();
    return () => {
      observer?.disconnect();
      for (const kind of ['click', 'keydown']) root?.removeEventListener(kind, pick);
      cancelAnimationFrame(waiting);
      for (const name of SIGNALS) kernel?.[name]?.disconnect(answers);
    };
  },
};
