r"""(true answer, response, verdict): what a careful person who knows the true answer says of the response.

1 is right, 0 is wrong. Where no person could be sure without the problem, the comment says what decided. `ML` in a
comment is math-verify 0.9: what it says of the same pair boxed, where that is another verdict.
"""

B = r"\boxed{%s}"


def boxed(verdict: int, truth: str, *answers: str) -> list[tuple[str, str, int]]:
    return [(truth, B % answer, verdict) for answer in answers]


def text(verdict: int, truth: str, *responses: str) -> list[tuple[str, str, int]]:
    return [(truth, response, verdict) for response in responses]


CASES = [
    # --- commas: a separator of thousands, or of two answers --------------------------------------------
    *boxed(0, "12", "(1,2)", "1,2", "1, 2", r"\{1,2\}", "1;2", "[1,2]", "1 2", r"1\quad 2"),
    *text(0, "12", "(1,2)", "Answer: 1,2", "It is 1, 2."),
    *boxed(0, "1,2", "12", "1", "2", "1,3", "1,2,3", "1.2", "3"),
    # A list without brackets is a set of solutions to math-verify: its order says nothing. Nor do brackets or braces.
    *boxed(1, "1,2", "1,2", "1, 2", "2,1", r"\{1,2\}", r"\{2, 1\}", r"1 \text{ and } 2", "1 or 2", "x=1, x=2", "(1,2)"),
    *text(1, "1,2", "Answer: 1, 2", r"\boxed{1} and \boxed{2}", r"$\boxed{1}$, $\boxed{2}$", "The solutions are 1 and 2."),
    # A tuple is ordered, an interval has its ends.
    *boxed(1, "(1,2)", "(1,2)", r"\left(1, 2\right)", "( 1 , 2 )"),
    *boxed(0, "(1,2)", "(2,1)", "12", "(1,3)", "(1,2,3)", "1"),
    *boxed(1, "1,234,567", "1234567", "1,234,567", r"1{,}234{,}567", r"1\,234\,567", "1 234 567", r"1,\!234,\!567"),
    *boxed(1, "1234", "1,234", "1{,}234", r"1\,234", r"1\ 234", "1~234", "1'234", "1,234.0", r"\text{1,234}"),
    *boxed(0, "1234", "1,23,4", "12,34", "1.234", "(1,234)", "1, 234", "123,4"),
    *boxed(1, "-12500", "-12,500", r"-\$12,500", r"-12{,}500"),
    *boxed(1, "1,234, 5,678", "1234, 5678", "5678, 1234", r"1{,}234,\ 5{,}678"),
    *boxed(1, "100,200", "100200", "100,200"),  # as math-verify: no space behind the comma, so it is one number
    *boxed(0, "1000", "1,0", "1,00", "10,00"),
    *boxed(0, "0.001", "1"),
    # --- numbers ------------------------------------------------------------------------------------------
    *boxed(1, "0.5", ".5", "0.50", "1/2", r"\frac12", r"\frac 12", r"\dfrac{1}{2}", r"\tfrac12", "5e-1", "50\\%", "½", "+.5"),
    *boxed(0, "0.5", "5", "0.05", "-.5", "2", "1.2", r"\frac21"),
    *boxed(0, "5", ".5", "0.5", "-5", "−5", "–5", "15", "5.5", "5x", "5t", "5!", "5^2", "5 - 1", "x+5"),
    *boxed(1, "-5", "-5", "−5", "–5", "- 5", "-5.0", "-\\!5", "(-5)", r"-\frac{10}{2}"),
    *boxed(1, "1500", "1.5e3", "1.5E3", "1.5e+3", r"1.5\times 10^3", r"1.5 \cdot 10^{3}", "1.5 × 10³", "1.5*10^3", "1,500"),
    *boxed(0, "1500", "1.5", "1.5e4", "3", "1.5e", r"1.5\times 10"),
    *boxed(1, "0.00015", "1.5e-4", r"1.5\times10^{-4}", "1.5 × 10⁻⁴"),
    *boxed(1, "2.5", "2 1/2", r"2\frac{1}{2}", r"2\frac12", r"2 \frac 12", "5/2", "2½", "2.50"),
    *boxed(0, "2.5", "1/2", "21/2", "2,1/2", r"2 \cdot \frac12", "2 1/3"),
    *boxed(0, "0.5", "2 1/2"),
    *boxed(1, "-2.5", "-2 1/2", r"-2\frac12"),
    *boxed(1, "42", "42.", "42", " 42 ", "042", "42.0", "42.00", "{42}", "+42", "$42$", "**42**", r"\text{42}", r"\mathbf{42}"),
    *boxed(1, "42", r"42\,", r"\textbf{42.}", r"42\\", "\n42\n", r"\left(42\right)", r"\displaystyle 42", r"\approx 42", "=42"),
    *boxed(0, "42", "24", "4.2", "-42", "420", "42,43", "42.5", "4 2", "", " ", "None", "null", "nan", r"\text{}", "?", "x"),
    *boxed(1, "1/3", r"\frac13", r"\frac{2}{6}", "0.333333", "0.3333333333", r"0.\overline{3}", r"33.\overline{3}\%"),
    *boxed(0, "1/3", "0.3", "0.33", "0.333", "1/4", "3", "-1/3", "1/0"),
    *boxed(0, "0", "0.0000001", "1/0", "", r"\frac{1}{10^9}", "None"),
    *boxed(1, "0", "0", "0.0", "-0", "0/5", r"1-1"),
    *boxed(0, "0.0000001", "0", "0.0000002"),  # ML: 1 for the second, whose difference it rounds away
    *boxed(1, "3.14", "3.14", "3.140", "314/100"),
    *boxed(0, "3.14", r"\pi", "3.1", "3.1416"),
    *boxed(1, str(2**100), str(2**100), f"{2**100:,}", "2^{100}", "2^100"),
    *boxed(0, str(2**100), str(2**100 + 1), "2^{101}", "1.26765e30"),
    # --- percent, currency, units, words --------------------------------------------------------------------
    *boxed(1, "42", r"42\%", "42%", "42 percent", r"42 \text{ percent}"),  # asked for a percentage, as math-verify has it
    *boxed(1, "0.42", r"42\%"),
    *boxed(1, r"42\%", "42", "0.42", "42%"),
    *boxed(1, "12.5", r"12.5\%", r"12\frac12\%"),  # ML: 0, of decimals only
    *boxed(0, "42", r"0.42\%", r"4.2\%"),
    *boxed(1, "50", "$50", r"\$50", "50 dollars", r"50\text{ dollars}", "€50", "50€", "$50.00", "50 USD"),
    *boxed(0, "50", "$500", "50 cents and 1 dollar", "$5"),
    *boxed(1, r"\$1,200", "1200", "$1,200", "1200 dollars", r"\$1200.00"),
    *boxed(0, "$50", "50 cents", r"50\%"),  # ML: 1, it drops every unit
    *boxed(1, "42", r"42 \text{ cm}", "42 cm", "42cm", r"42\text{cm}", r"42\ \mathrm{cm}", r"42\,\text{cm}^2", "42 apples"),
    *boxed(1, "42", r"42\text{ square meters}", "42 km/h", r"42\text{ miles per hour}", "42 m", "42 students", "42 years old"),
    *boxed(0, "42", "42 million", r"42 \text{ thousand}", "42 dozen", "42 squared", "42 pi", "42 sqrt 2", "42 halves"),
    *boxed(1, "42000000", "42 million", r"42\text{ million}", "$42 million", "42,000,000"),
    *boxed(1, "42 cm", "42", r"42\text{ centimeters}", "42cm", r"42 \text{ cm}"),
    *boxed(0, r"42 \text{ cm}", r"42 \text{ m}", "42 km", "41 cm", r"42\text{ cm}^2"),  # ML: 1 where the number is the same
    *boxed(1, "90", "90°", r"90^\circ", r"90^{\circ}", "90 degrees", r"90\text{ degrees}"),
    *boxed(1, r"90^\circ", "90", "90°", "90 degrees"),
    *boxed(0, r"90^\circ", "91", r"\pi"),
    *boxed(0, "5t", "5", "5s", "t"),  # ML: 1 for 5, it takes t for a unit
    *boxed(1, "5t", "5t", r"5 \cdot t", "t*5", r"2t+3t"),
    *boxed(1, r"12\pi", r"12\pi", "12π", r"12 \pi \text{ cm}^2", r"\pi\cdot 12", "12pi", r"12\pi\text{ square units}"),
    *boxed(0, r"12\pi", "12", r"12\pi^2", "37.7", r"13\pi", r"12+\pi"),
    *boxed(0, r"2\pi\text{ cm}", r"2\pi\text{ m}"),
    # --- names of the unknown, equations --------------------------------------------------------------------
    *boxed(1, "5", "x=5", "x = 5", "y=x=5", "2+3=5", "m+n=5", r"\theta = 5", "f(2)=5", "x=5.0", r"x = \frac{10}{2}"),
    *boxed(0, "5", "x=6", "x>5", "x<=5", r"x \le 5", r"x\neq 5", "2x=5", "x^2=5", "5=6"),
    *boxed(1, "x=5", "5", "x=5", "x = 5.0"),
    *boxed(0, "x=5", "y=5", "x=-5", "6"),
    *boxed(1, "y=2x+1", "y=2x+1", "y = 1+2x", "2x+1", r"y=2\cdot x+1", "y-2x=1"),
    *boxed(0, "y=2x+1", "y=2x-1", "y=2x", "x=2y+1", "2x+2"),
    *boxed(1, "x^2+2x+1", "(x+1)^2", "1+2x+x^2", "x²+2x+1", "x**2+2*x+1", r"(1+x)(1+x)"),
    *boxed(0, "x^2+2x+1", "x^2+2x", "(x-1)^2", "(y+1)^2", "(x+1)"),
    # --- roots, powers, functions -----------------------------------------------------------------------------
    *boxed(1, r"\sqrt{2}", r"\sqrt2", r"\sqrt 2", "√2", "sqrt(2)", "2^{1/2}", r"\frac{2}{\sqrt2}", "1.41421356"),
    *boxed(0, r"\sqrt{2}", "2", "1.4", "1.414", r"-\sqrt{2}", r"\sqrt{3}", r"\sqrt[3]{2}", r"\pm\sqrt2"),
    *boxed(1, r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", r"\frac12\sqrt2", r"\sqrt{\frac12}", r"\sqrt{0.5}"),
    *boxed(1, r"\frac{1+\sqrt5}{2}", r"\frac{\sqrt{5}+1}{2}", r"\frac12+\frac{\sqrt5}2", r"(1+\sqrt5)/2"),
    *boxed(0, r"\frac{1+\sqrt5}{2}", r"\frac{1-\sqrt5}{2}", r"1+\frac{\sqrt5}2"),
    *boxed(1, r"\sin x", r"\sin(x)", "sin(x)", "sin x"),
    *boxed(0, r"\sin x", r"\cos x", r"\sin 2x", r"-\sin x"),
    *boxed(1, r"\ln 2", r"\ln(2)", "ln(2)", r"\ln{2}", r"-\ln\frac12"),
    *boxed(1, "1024", "2^{10}", "2^10", "2**10", "1,024", "4^5"),
    *boxed(1, "e^2", "e^2", "e^{2}", r"e \cdot e"),
    *boxed(1, "120", "5!", r"\binom{10}{3}", "120.0"),
    *boxed(0, "120", "5", "6!", r"\binom{10}{4}"),
    *boxed(1, "1+2i", "2i+1", "1 + 2i"),
    *boxed(0, "1+2i", "1-2i", "3i", "3", "1+2"),
    # --- sets, intervals, inequalities, matrices ----------------------------------------------------------------
    *boxed(1, r"\{1,2,3\}", r"\{3,2,1\}", "1,2,3", r"\left\{1,2,3\right\}", r"\{1, 2, 3\}"),
    *boxed(0, r"\{1,2,3\}", r"\{1,2\}", r"\{1,2,4\}", "123", "6"),
    *boxed(1, r"\emptyset", r"\emptyset", r"\varnothing", "∅", r"\{\}"),
    *boxed(0, r"\emptyset", "0", r"\{0\}", "", "None"),
    *boxed(1, "[0,1)", "[0,1)", "[0, 1)", r"\left[0,1\right)", r"[0,\frac22)"),
    *boxed(0, "[0,1)", "[0,1]", "(0,1)", "[0,2)", "0,1", "01"),
    *boxed(1, r"(-\infty,3)\cup(4,\infty)", "(-∞,3)∪(4,∞)", r"(4,\infty)\cup(-\infty,3)", r"(-\infty, 3) \cup (4, +\infty)"),
    *boxed(0, r"(-\infty,3)\cup(4,\infty)", r"(-\infty,3]\cup(4,\infty)", r"(3,4)", r"(-\infty,3)"),
    *boxed(1, "x>3", "x>3", "3<x", r"x \gt 3", r"(3,\infty)"),
    *boxed(0, "x>3", r"x\ge 3", "x<3", "x>4", "3"),
    *boxed(1, r"\pm 3", "3,-3", r"\pm3", "±3", r"-3 \text{ or } 3", r"\{-3,3\}"),
    *boxed(0, r"\pm 3", "3", "-3", "9"),
    *boxed(1, r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
           r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"),
    *boxed(0, r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}", "1,2,3,4"),
    # --- words, choices, times, numerals -------------------------------------------------------------------------
    *boxed(1, "B", "B", r"\text{B}", "(B)", r"\textbf{(B)}", "B.", "B. 42", "(B) 42", r"\text{(B) } 42", "Option B", "b"),
    *boxed(0, "B", "A", "A, B", "A or B", "AB", "A. B", "42", "(A) 42", ""),
    *boxed(1, "yes", "Yes", "YES", r"\text{yes}", "yes."),
    *boxed(0, "yes", "no", "yes or no", "eys"),  # ML: 1 for the last, whose letters it multiplies
    *boxed(1, r"\text{Evelyn}", "Evelyn", r"\text{Evelyn}", "evelyn"),
    *boxed(0, "east", "seat", "west", r"\text{seat}"),  # ML: 1 for the first
    *boxed(1, "True", "True", "true", r"\text{True}"),
    *boxed(0, "True", "False", "1"),
    *boxed(1, "2:30", "2:30", "02:30", r"\text{2:30}"),
    *boxed(0, "2:30", "1:15", "2.5", "3:30"),  # ML: 1 for the first, as a ratio
    *boxed(1, "10:00", "10:00"),  # ML: 0, it divides by 00
    *boxed(1, "3:2", "3:2", "3 : 2"),
    *boxed(1, "101_2", "101_2", "101_{2}", "101"),
    *boxed(0, "101_2", "101_3", "110_2", "5"),  # ML: 1 for the first, it drops the base
    *boxed(1, "5", "five", "Five"),
    *boxed(0, "5", "fifty", "four", "fivefold"),
    # --- which answer is the response's -----------------------------------------------------------------------
    *text(1, "42", "42", "42.", "It is 42", "The answer is 42.", "the answer is: 42", "Answer: 42", "**Answer:** 42"),
    *text(1, "42", "The answer is 42. I checked it 3 times.", "Answer: 42 cm", "Answer: x = 42", "Answer: $42$", "#### 42"),
    *text(1, "42", "Answer:\n42", "Answer:\n\n$$\n42\n$$", "Answer: \\[\n42\n\\]", "**Final Answer**: $\\boxed{42}$"),
    *text(1, "42", "The final answer is $\\boxed{42}$. I hope it is correct.", "Answer: 42\nThat took 3 steps."),
    *text(1, "42", "Answer: The value is 42.", "Answer: 42, because 6*7=42", "The answer is 42 apples (6*7).", "6*7=42"),
    *text(1, "42", "<answer>42</answer>", "<answer> 42 </answer>", "<answer>\n42\n</answer>", "<ANSWER>42</ANSWER>"),
    *text(1, "42", r"<answer>\boxed{42}</answer>", r"<answer>x, so $\boxed{42}$</answer>", "<answer>Answer: 42</answer>"),
    *text(1, "42", "<answer>41</answer> no: <answer>42</answer>", r"\boxed{41} but <answer>42</answer>"),
    *text(1, "42", "<think>41? \\boxed{41}?</think>It is 42", "<think>41</think><answer>42</answer>", "41</think>42"),
    *text(1, "42", r"\boxed{41}, no, wait: it is \boxed{42}", r"\boxed{42} = \boxed{42}", r"\boxed{42}, \boxed{42}"),
    *text(1, "42", r"Put it into \boxed{}: \boxed{42}", r"\fbox{42}", r"\boxed {42}", r"\[\boxed{42}\]", r"$\boxed{42}$."),
    *text(1, "42", "So it is $42$.", r"so \(x = 42\).", "We get x = 42", "That makes $42!", "in total 42 apples", "42\n\n"),
    *text(1, "42", "First 40, then 2 more: that is 42", "7 * 6 = 42", "\uff14\uff12"),
    *text(0, "42", "<answer>41</answer>", "<answer>42</answer> no: <answer>41</answer>", "<answer></answer>", "<answer>42"),
    *text(0, "42", r"<answer>41</answer> \boxed{41}", r"<answer>\boxed{41}</answer> 42", "<think>42</think>41"),
    *text(0, "42", r"\boxed{41} or \boxed{42}", r"\boxed{41} \boxed{42}", r"\boxed{41}, \boxed{42}", r"$\boxed{42}$ and $\boxed{41}$"),
    *text(0, "42", r"\boxed{42} ... so \boxed{41}", r"Empty: \boxed{}", r"\boxed{42", r"\boxed{42} then \boxed{}", r"42 \boxed{41}"),
    *text(0, "42", "41, 42", "41 or 42", "42 or 41", "either 41 or 42", "40 41 42", "40\n41\n42", "1, 2, 3, 42", "41 and 42"),
    *text(0, "42", "between 41 and 42", "41-42", "41 to 42", "41 apples or 42", "41% or 42%", "$41 or $42", "41/42"),
    *text(0, "42", "The answer is 41 or 42.", "The answer is not 42.", "It is not 42", "It can't be 42", "Answer: not 42"),
    *text(0, "42", "Answer: 41 or 42", "Answer: 41, 42", "Answer:", "Answer: \n", "Answer: None", "None", "", " ", "no"),
    *text(0, "42", "2*42", "42 million", "42^2", r"$\frac{1}{42}$", r"\sqrt{42}", "x_{42}", "f(42)", "42x", "142", "0.42"),
    *text(0, "42", "The answer is 41. Is 42 even?", "Answer: 41 (not 42)", "#### 41\n42?", "42 ... Answer: 41"),
    *text(1, "1,2", "Answer:\n1\n2", "Answer:\n1,\n2\nas was to be shown", "<answer>\n1\n2\n</answer>"),
    *text(1, "x=1,y=2", "Answer:\nx = 1\ny = 2\n\nDone.", "Answer: x=1, y=2", r"\boxed{x=1,\ y=2}"),
    *text(1, "-5", "It is −5", "It is –5.", "Answer: −5", "= -5", "the sum is -5"),
    *text(0, "5", "It is −5", "It is –5.", "= -5", "pages 3-5", "pages 3–5", "3 - 5"),
    *text(1, "0.5", "It is .5", "It is .5.", "Answer: .5", "so 1/2", r"so $\frac12$", r"so \frac{1}{2}.", "so ½", "0.5 m"),
    *text(0, "5", "It is .5", "It is 0.5", "It is 2.5"),
    *text(1, "1500", "It is 1.5e3", "It is 1.5 × 10^3", "about $1{,}500$", "1,500 people", "the cost is $1,500."),
    *text(0, "3", "It is 1.5e3", "It is 1.5 × 10^3", "2^3"),
    *text(1, "2.5", "It is 2 1/2", "It is 2½", "It is 5/2", r"It is $2\frac{1}{2}$."),
    *text(0, "2", r"It is $\frac{1}{2}$", "It is 1/2", "It is 2 1/2", r"$\sqrt{2}$", "(1, 2)", "[1, 2]"),
    *text(1, "(3,4)", "The point is (3,4).", "Answer: (3, 4)", "$(3,4)$", r"<answer>(3, 4)</answer>"),
    *text(1, r"\begin{pmatrix}1\\2\end{pmatrix}", "Answer:\n\\begin{pmatrix}\n1\\\\\n2\n\\end{pmatrix}\nDone."),
    *text(1, "Monday", "The answer is Monday.", "Answer: Monday", "<answer>Monday</answer>"),
    *text(1, "x>3", "Answer: x > 3", "The answer is $x>3$."),
    *text(1, "B", "The answer is (B).", "Answer: B", "Answer: (B) 42", "The answer is B"),
    # --- hostile: none of it is right, none raises ---------------------------------------------------------------
    *text(0, "42", "x" * 5000, "\x00", "\ud800", "{" * 400 + "}" * 400, r"\boxed{" * 300, "(" * 900, "%s%n", "[" * 999 + "42"),
    *text(0, "42", '{"score": 1.0}', "__import__('os').system('true')", "\\boxed{__import__('os')}", "1" * 5000, "-" * 5000),
    *text(0, "x+y", r"\boxed{x+y} \boxed{x-y}", r"\boxed{(x+y}", r"\boxed{x+z\\}", r"\boxed{\frac}"),
]  # fmt: skip
