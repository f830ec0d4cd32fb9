// The listening test: order of the samples, answers, and what is still missing.
//
// It runs in any recent browser and needs no network. Answers are kept in
// localStorage under im2sp-listening-test/<test>/, so a reload loses nothing, and tabs of one
// listener share them. The order of the samples depends on the test's id and the listener's name
// alone.
"use strict";
(() => {
  const test = JSON.parse(document.getElementById("test").textContent);
  const samples = new Map(test.samples.map((sample) => [sample.id, sample]));
  const scales = ["naturalness", "descriptiveness"];
  const toHear = "listening to the end";
  const storagePrefix = `im2sp-listening-test/${test.id}/`;
  const state = { listener: "", order: [], answers: {}, place: 0, isKept: true };
  const part = (id) => document.getElementById(id);

  // The order of a listener: FNV-1a of test and name seeds mulberry32, which shuffles the ids.

  function hashed(text) {
    let hash = 0x811c9dc5;
    for (const byte of new TextEncoder().encode(text)) {
      hash = Math.imul(hash ^ byte, 0x01000193);
    }
    return hash >>> 0;
  }

  function generator(seed) {
    return () => {
      seed = (seed + 0x6d2b79f5) | 0;
      let mixed = Math.imul(seed ^ (seed >>> 15), seed | 1);
      mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)) ^ mixed;
      return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
    };
  }

  function orderOf(listener) {
    const random = generator(hashed(`${test.id}/${listener}`));
    const order = [...samples.keys()];
    for (let last = order.length - 1; last > 0; last -= 1) {
      const other = Math.floor(random() * (last + 1));
      [order[last], order[other]] = [order[other], order[last]];
    }
    return order;
  }

  // Storage of the browser; without storage, the page shows a warning.

  function kept(name) {
    try {
      return localStorage.getItem(storagePrefix + name);
    } catch {
      return null;
    }
  }

  function keep(name, value) {
    try {
      localStorage.setItem(storagePrefix + name, value);
    } catch {
      state.isKept = false;
      part("unkept").hidden = false;
    }
  }

  const score = (value) => ([1, 2, 3, 4, 5].includes(value) ? value : null);

  function answersOf(listener) {
    let found = null;
    try {
      found = JSON.parse(kept(`answers/${listener}`));
    } catch {
      // Unreadable answers are asked again.
    }
    const answers = {};
    for (const id of samples.keys()) {
      const given = found?.[id];
      answers[id] = { heard: given?.heard === true };
      for (const scale of scales) {
        answers[id][scale] = score(given?.[scale]);
      }
    }
    return answers;
  }

  // Take over the answers that another tab has stored, before any change.
  function refresh() {
    if (state.isKept && kept(`answers/${state.listener}`) !== null) {
      state.answers = answersOf(state.listener);
    }
  }

  function missing(id) {
    const answer = state.answers[id];
    const unscored = scales.filter((scale) => answer[scale] === null);
    return answer.heard ? unscored : [toHear, ...unscored];
  }

  const isComplete = (id) => missing(id).length === 0;
  const numbered = (place) => `Sample ${place + 1}`;

  // The three views: start, one sample, overview.

  function show(view) {
    part("audio").pause();
    for (const name of ["start", "sample", "overview"]) {
      part(name).hidden = name !== view;
    }
    part("progress").hidden = view === "start";
    window.scrollTo(0, 0);
    update();
  }

  function update() {
    const done = state.order.filter(isComplete).length;
    part("bar").max = state.order.length;
    part("bar").value = done;
    part("done").textContent = `${done} of ${state.order.length} samples complete`;
    if (!part("sample").hidden) {
      const left = missing(state.order[state.place]);
      part("left").textContent = left.length
        ? `Still missing here: ${left.join(", ")}.`
        : "This sample is complete.";
    }
  }

  function begin(event) {
    event.preventDefault();
    state.listener = part("listener").value.trim().toLowerCase();
    state.order = orderOf(state.listener);
    state.answers = answersOf(state.listener);
    keep("listener", state.listener);
    const first = state.order.findIndex((id) => !isComplete(id));
    if (first < 0) {
      showOverview();
    } else {
      showSample(first);
    }
  }

  function showSample(place) {
    state.place = place;
    const id = state.order[place];
    const sample = samples.get(id);
    part("number").textContent = `${numbered(place)} of ${state.order.length}`;
    part("broken").hidden = true;
    part("photo").src = sample.photo;
    part("photo").width = sample.width_px;
    part("photo").height = sample.height_px;
    part("audio").src = sample.wav;
    showAnswers();
    part("previous").disabled = place === 0;
    part("next").textContent = place + 1 < state.order.length ? "Next" : "Finish";
    show("sample");
    part("number").focus();
  }

  function showAnswers() {
    const answer = state.answers[state.order[state.place]];
    for (const input of part("sample").querySelectorAll("input")) {
      input.checked = answer[input.name] === Number(input.value);
    }
  }

  function showOverview() {
    refresh();
    const open = state.order.map((id, place) => [place, missing(id)]).filter(([, m]) => m.length);
    part("verdict").textContent = open.length
      ? `${open.length} of ${state.order.length} samples are not complete. Missing are:`
      : "You have answered everything. Thank you!";
    part("missing").replaceChildren(
      ...open.map(([place, what]) => {
        const item = document.createElement("li");
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = numbered(place);
        button.addEventListener("click", () => showSample(place));
        const text = document.createElement("span");
        text.textContent = what.length > scales.length ? "everything" : what.join(", ");
        item.append(button, text);
        return item;
      }),
    );
    part("saved").textContent = "";
    show("overview");
    part("heading").focus();
  }

  function answered() {
    keep(`answers/${state.listener}`, JSON.stringify(state.answers));
    update();
  }

  function rated(event) {
    refresh();
    state.answers[state.order[state.place]][event.target.name] = Number(event.target.value);
    answered();
  }

  function heard() {
    refresh();
    state.answers[state.order[state.place]].heard = true;
    answered();
  }

  function go(event) {
    event.preventDefault();
    if (state.place + 1 < state.order.length) {
      showSample(state.place + 1);
    } else {
      showOverview();
    }
  }

  function changedElsewhere(event) {
    if (event.key === `${storagePrefix}answers/${state.listener}`) {
      refresh();
      showAnswers();
      update();
    }
  }

  function save() {
    refresh();
    const { listener, order, answers } = state;
    const content = { form: test.answers_form, test: test.id, listener, order, answers };
    const text = `${JSON.stringify(content, null, 1)}\n`;
    const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    const link = document.createElement("a");
    link.href = url;
    link.download = `answers-${test.id}-${listener}.json`;
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
    const open = order.filter((id) => !isComplete(id)).length;
    part("saved").textContent =
      `The answers are in the file ${link.download}, where your browser puts downloads. ` +
      (open
        ? `It is not complete: ${open} of ${order.length} samples have answers missing.`
        : "Please send it to the person who gave you this test.");
  }

  function someName() {
    const letters = "abcdefghjkmnpqrstuvwxyz23456789";
    const drawn = crypto.getRandomValues(new Uint8Array(8));
    return `listener-${[...drawn].map((byte) => letters[byte % letters.length]).join("")}`;
  }

  part("listener").value = kept("listener") ?? someName();
  part("welcome").hidden = kept("listener") === null;
  part("start").addEventListener("submit", begin);
  part("sample").addEventListener("submit", go);
  part("sample").addEventListener("change", rated);
  part("previous").addEventListener("click", () => showSample(state.place - 1));
  part("back").addEventListener("click", () => showSample(state.place));
  part("to-overview").addEventListener("click", showOverview);
  part("audio").addEventListener("ended", heard);
  part("audio").addEventListener("error", () => {
    part("broken").hidden = false;
  });
  part("save").addEventListener("click", save);
  window.addEventListener("storage", changedElsewhere);
  part("start").hidden = false;
})();
