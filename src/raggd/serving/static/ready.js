// Ready sets of examples: each shows a form on passages of its own, and serves for any documents.
const PUMP = { title: "Workshops", text: "The pump is repaired by the workshop in Turin. The boiler is serviced in Genoa." };
const OFFICE = { title: "Office", text: "The office is open from nine to five on weekdays. On Saturdays it is closed." };
const CABLE = { title: "Parts", text: "The charger needs a cable of type B, two metres long. The lamp needs none." };
const ASKED = ["Who repairs the pump?", "When is the office open?", "Which cable fits the charger?"];
const passages = [[OFFICE, PUMP], [OFFICE, CABLE], [CABLE, PUMP]];

const set = (answers, questions = ASKED, shown = passages) =>
  answers.map((answer, at) => ({ question: questions[at], answer, passages: shown[at] }));

export const READY = {
  "cite the passage": set(["the workshop in Turin [2]", "from nine to five on weekdays [1]", "type B [1]"]),
  "refuse what is not there": set(
    ["the workshop in Turin", "Not in the documents.", "Not in the documents."],
    [ASKED[0], "Who is the mayor of Turin?", "What does the lamp cost?"],
  ),
  "JSON": set(['{"answer": "the workshop in Turin"}', '{"answer": "from nine to five"}', '{"answer": "type B"}']),
  "German": set([
    "Die Antwort lautet: die Werkstatt in Turin.", "Die Antwort lautet: von neun bis fünf.", "Die Antwort lautet: Typ B.",
  ]),
  "yes or no": set(["yes", "no", "yes"], [
    "Is the pump repaired in Turin?", "Is the office open on Saturdays?", "Does the charger need a cable of type B?",
  ]),
};
