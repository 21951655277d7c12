"""What this machine is fit to measure."""

from tda.doctor.checkup import Checkup as Checkup
from tda.doctor.checkup import check_up as check_up
from tda.doctor.verdict import rows as rows
from tda.doctor.verdict import verdict as verdict
