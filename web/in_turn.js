// Tasks one after another: an event must not overtake the answer that one before is waiting for.

/** A function that runs tasks in the order they are given; errors go to the console by a name. */
export function inTurnFor(name) {
  let last = Promise.resolve();
  return (task) => {
    last = last.then(task).catch((error) => console.warn(`LoRA Atelier ${name}:`, error));
  };
}
