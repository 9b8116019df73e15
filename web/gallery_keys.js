// The keyboard in the gallery.

const isTyping = (target) => ["INPUT", "TEXTAREA", "SELECT"].includes(target.tagName);

/**
 * Whether a key meant something, and was acted on.
 *
 * @param target the grid, a button or a field.
 * @param doing {back(), move(by, range), moveRows(by, range), movePage(by, range),
 *   moveTo(place, range), last(), toggle(), act(name), caption(), large(), close(), undo(), redo()}.
 */
export function press(event, target, doing) {
  const control = event.ctrlKey || event.metaKey;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (isTyping(target)) {
    if (key !== "Escape") return false;
    doing.back();
    return true;
  }
  const meaning = control ? commandWithControl : commandOf;
  const command = meaning(key, event.shiftKey);
  if (!command) return false;
  if (target.tagName === "BUTTON" && ["Enter", " "].includes(key)) return false; // presses it
  command(doing);
  return true;
}

/** Keep the focus in a dialog: after its last part comes the first. False where that is natural. */
export function tab(event, dialog) {
  if (event.key !== "Tab") return false;
  const parts = [...dialog.querySelectorAll("button, input, select, textarea, [tabindex='0']")];
  const there = parts.filter((part) => !part.disabled && part.checkVisibility());
  const place = there.indexOf(event.target);
  const next = place + (event.shiftKey ? -1 : 1);
  if (place >= 0 && next >= 0 && next < there.length) return false;
  there[event.shiftKey ? there.length - 1 : 0].focus();
  return true;
}

function commandWithControl(key, shift) {
  if (key === "a") return (doing) => doing.act("all");
  if (key === "z") return (doing) => (shift ? doing.redo() : doing.undo());
  if (key === "y") return (doing) => doing.redo();
  return null;
}

function commandOf(key, range) {
  const commands = {
    ArrowLeft: (doing) => doing.move(-1, range),
    ArrowRight: (doing) => doing.move(1, range),
    ArrowUp: (doing) => doing.moveRows(-1, range),
    ArrowDown: (doing) => doing.moveRows(1, range),
    PageUp: (doing) => doing.movePage(-1, range),
    PageDown: (doing) => doing.movePage(1, range),
    Home: (doing) => doing.moveTo(0, range),
    End: (doing) => doing.moveTo(doing.last(), range),
    " ": (doing) => doing.toggle(),
    x: (doing) => doing.toggle(),
    e: (doing) => doing.caption(),
    Enter: (doing) => doing.large(),
    Escape: (doing) => doing.close(),
  };
  return commands[key] ?? null;
}
