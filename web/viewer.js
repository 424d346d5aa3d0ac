// Before and after: two canvases with a line between them, slices, planes, keys. engine.js makes the pictures.
const $ = id => document.getElementById(id)

// What lies at the left, right, top and bottom edge of a slice, as in evaluation/figures.py: of the patient.
const EDGES = { axial: 'LRAP', coronal: 'LRSI', sagittal: 'PASI' }

/** ask(view): wants a picture of {plane, s, smooth, errors}, which `draw` then gets. */
export class Viewer {
  constructor(ask) {
    Object.assign(this, { ask, asked: false, again: false, planes: {}, places: {}, plane: '' })
    for (const id of ['slice', 'smooth', 'errors']) $(id).oninput = () => this.look()
    $('wipe').oninput = () => $('pair').style.setProperty('--line', `${$('wipe').value}%`)
    $('stage').onpointerdown = event => { $('stage').setPointerCapture(event.pointerId); this.wipeTo(event) }
    $('stage').onpointermove = event => { if (event.buttons) this.wipeTo(event) }
    let turned = 0
    $('stage').addEventListener('wheel', event => {
      turned += event.deltaMode ? event.deltaY * 40 : event.deltaY
      const steps = Math.trunc(turned / 40), before = $('slice').value
      turned -= 40 * steps
      if (steps) this.step($('slice'), steps)
      if (!steps || before !== $('slice').value) event.preventDefault() // at the ends the page moves on
    }, { passive: false })
    document.addEventListener('keydown', event => this.key(event))
  }

  /** Show a result, see `summary` in engine.js. */
  open({ planes, plane, errors, picture }) {
    this.planes = planes
    this.places = Object.fromEntries(Object.entries(planes).map(([name, n]) => [name, n >> 1]))
    $('slice-label').hidden = $('planes').hidden = $('hint').hidden = picture
    $('errors-label').hidden = !errors
    for (const edge of document.querySelectorAll('.edge')) edge.hidden = picture
    $('errors').checked = false
    $('planes').replaceChildren($('planes').firstElementChild, ...Object.keys(planes).map(name => {
      const label = document.createElement('label'), radio = document.createElement('input')
      Object.assign(radio, { type: 'radio', name: 'plane', value: name, checked: name === plane, onchange: () => this.turn(name) })
      label.append(radio, ` ${name}`)
      return label
    }))
    this.plane = ''
    this.turn(plane)
  }

  /** Look at another plane. */
  turn(plane) {
    this.plane = plane
    document.querySelectorAll('.edge').forEach((edge, i) => { edge.textContent = EDGES[plane][i] })
    Object.assign($('slice'), { max: this.planes[plane] - 1 })
    $('slice').value = this.places[plane]
    this.look()
  }

  /** Ask for the picture of what the controls say; while one is on its way, for the last thing that was wanted. */
  look() {
    const s = this.places[this.plane] = Number($('slice').value), count = this.planes[this.plane]
    $('slice-number').textContent = `${s + 1} of ${count}`
    $('pair').setAttribute('aria-label', `before and after, ${this.plane} slice ${s + 1} of ${count}`)
    if (this.asked) this.again = true
    else this.ask({ plane: this.plane, s, smooth: Boolean($('smooth').value), errors: $('errors').checked })
    this.asked = true
  }

  /** Draw what was asked for: {before, after, tall}, see compare.js. The browser stretches both to the same place. */
  draw({ tall, ...pictures }) {
    for (const [id, { pixels, h, w }] of Object.entries(pictures)) {
      Object.assign($(id), { width: w, height: h }).getContext('2d').putImageData(new ImageData(pixels, w, h), 0, 0)
    }
    $('before').classList.toggle('measured', !$('smooth').value)
    $('pair').style.setProperty('--tall', tall)
    this.asked = false
    if (this.again) {
      this.again = false
      this.look()
    }
  }

  /** Move the line to the pointer. */
  wipeTo(event) {
    const { left, width } = $('pair').getBoundingClientRect()
    this.step($('wipe'), (event.clientX - left) / width * 100 - $('wipe').value)
  }

  /** Move a slider by so much. */
  step(slider, by) {
    slider.value = Number(slider.value) + by
    slider.dispatchEvent(new Event('input'))
  }

  /** Arrow keys, wherever nothing else takes them. */
  key(event) {
    if ($('result').hidden || event.target.closest('input, select, textarea') || event.ctrlKey || event.altKey || event.metaKey) return
    const [slider, by] = { ArrowUp: ['slice', 1], ArrowDown: ['slice', -1], ArrowLeft: ['wipe', -2], ArrowRight: ['wipe', 2] }[event.key] ?? []
    if (!slider || $(slider).closest('[hidden]')) return
    event.preventDefault()
    this.step($(slider), by)
  }
}
